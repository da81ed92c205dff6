"""Inference engine: encodes, prefills, decodes, samples and streams many requests at once."""
