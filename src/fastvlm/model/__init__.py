"""FastVLM's network: FastViTHD encoder, projector, image-text merge, Qwen2 decoder."""
