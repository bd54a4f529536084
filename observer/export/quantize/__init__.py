"""Quantized GGUF files and the importance matrix that they are made with."""
