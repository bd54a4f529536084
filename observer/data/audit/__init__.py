"""What data is worth: leakage, conflicts, grounding, balance, and what a shortcut could learn from it."""
