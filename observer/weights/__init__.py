"""Model weights and tokenizers on disk, as training and export share them."""
