"""Ollama: its HTTP API and its Modelfiles."""
