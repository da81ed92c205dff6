"""Samples: records of every layout -> messages and images -> rows of token ids and labels -> batches."""
