"""What computes for the engine: encoder, decoder and KV cache on one device."""
