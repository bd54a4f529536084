"""A run's folder: its manifest, stages and lock, reading it back and cleaning it."""
