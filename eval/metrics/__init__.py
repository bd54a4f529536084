"""Scores, their intervals and tests: pure functions of gold and answers."""
