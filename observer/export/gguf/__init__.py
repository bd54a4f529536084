"""GGUF files: writing, reading back, verifying, comparing with transformers."""
