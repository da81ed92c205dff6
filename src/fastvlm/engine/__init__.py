"""The fast path: encode, prefill, decode, sample and stream, many requests at once; equal to `generate`, token for token."""
