"""From a merged Hugging Face folder to GGUF files and Modelfiles, without llama.cpp's own tools."""
