"""Open, convert and register checkpoints of every published layout.

model, processor = fastvlm.load("apple/FastVLM-0.5B")
fastvlm.convert("llava-fastvithd_0.5b_stage3", "fastvlm-0.5b")
"""

from fastvlm.checkpoints.conversion import convert
from fastvlm.checkpoints.loading import load
from fastvlm.checkpoints.registration import register

__all__ = ["convert", "load", "register"]
