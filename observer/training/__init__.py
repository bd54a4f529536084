"""LoRA SFT: loading a base, training it, merging the adapter. Torch lives here, imported by the recipe only."""
