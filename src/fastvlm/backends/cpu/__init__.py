"""Linear layers and the image encoder for CPUs, with PyTorch and oneDNN."""
