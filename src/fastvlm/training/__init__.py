"""Training from a YAML recipe, on transformers' Trainer."""
