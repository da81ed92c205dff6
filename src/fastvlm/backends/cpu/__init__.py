"""Linear layers and the encoder for CPUs, by PyTorch and oneDNN."""
