"""Images and messages in, model inputs out: the image processor, the prompt, and the processor that joins them."""
