"""FastVLM's network: FastViTHD encoder, projector, the joint with the text, Qwen2 decoder."""
