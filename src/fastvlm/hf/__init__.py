"""Integration with transformers: configuration, models, processor, `load`, adapters. Training builds on it."""
