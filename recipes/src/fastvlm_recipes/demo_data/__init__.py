"""Draws images with questions and answers: `(seed, split, index)` -> image and record of its content."""
