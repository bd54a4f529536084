"""How good a model is: scorers, baselines, and the commands that write reports. `observer` never imports it."""
