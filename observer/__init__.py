"""qwen3-observer: fine-tune, quantize and prove a small local memory observer."""

__version__ = "0.1.0"
