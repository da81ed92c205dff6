"""A seeded drawer: `(seed, split, index) -> image + what is truly in it`; the same seed draws the same image."""
