"""Model backends: image encoder, decoder and KV cache on one device."""
