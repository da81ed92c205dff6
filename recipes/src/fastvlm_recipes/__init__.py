"""Recipe of fastvlm-mini: drawn training images, export and scoring of the checkpoint."""
