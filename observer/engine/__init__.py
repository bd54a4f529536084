"""Batched inference on a GGUF through llama.cpp's library."""
