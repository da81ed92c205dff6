"""How fastvlm-mini is made: what draws its training images, and what ships and scores it."""
