"""Preprocessing of images and messages: image processor, prompt and tokenizer."""
