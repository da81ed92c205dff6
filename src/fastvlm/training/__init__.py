"""Training by recipe: what is learnt, from which samples, at which rates; transformers' Trainer does the work."""
