"""What answers exchanges: a GGUF in this process, an Ollama server, or a folder of transformers weights."""
