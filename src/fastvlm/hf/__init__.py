"""transformers on top of the plain parts: configuration, models, processor, `load`, adapters. Training stands on it."""
