"""Checkpoints written anew: in another layout, or rounded to 8 or 4 bits."""
