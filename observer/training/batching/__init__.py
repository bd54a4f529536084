"""From rows to batches, and from batches to the loss."""
