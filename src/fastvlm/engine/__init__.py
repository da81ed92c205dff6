"""The fast path: encode, prefill, decode, sample and stream, many requests at once; token for token as `generate`."""
