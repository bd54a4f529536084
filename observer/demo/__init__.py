"""A page to try a model in: grades, names, graphs and memory of a conversation, drawn by this machine alone."""
