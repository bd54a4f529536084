"""From answers to reports: one model's scores, and comparisons of several."""
