"""Our engine beside other ways to answer with the same GGUF."""
