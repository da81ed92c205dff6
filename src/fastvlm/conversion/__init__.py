"""Writes checkpoints in another layout, or quantized to 8 or 4 bits."""
