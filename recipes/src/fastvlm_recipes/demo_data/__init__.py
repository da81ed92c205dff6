"""A seeded drawer: `(seed, split, index) -> picture + what is truly in it`; the same seed draws the same picture."""
