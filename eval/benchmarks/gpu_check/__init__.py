"""One page on whether training works on this GPU, and how fast."""
