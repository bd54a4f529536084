"""Training loops compared on the same rows, and sweeps over settings."""
