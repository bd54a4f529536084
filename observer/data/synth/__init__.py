"""Synthetic conversations whose gold follows from a simulated world, never from the text."""
