"""A seeded drawer: `(split, index) -> picture + what is truly in it`; the same seed draws the same picture."""
