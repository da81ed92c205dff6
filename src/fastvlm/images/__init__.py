"""Images: from anything that may hold one to an upright 8-bit RGB image of the model's size, within limits.

Needs neither torch nor transformers, so that worker processes (:mod:`fastvlm.images.pool`) start fast.
"""

from fastvlm.images.limits import DEFAULT_LIMITS, ImageLimits
from fastvlm.images.opening import encoded_bytes, open_image
from fastvlm.images.pixels import ALPHA_BACKGROUND

__all__ = ["ALPHA_BACKGROUND", "DEFAULT_LIMITS", "ImageLimits", "encoded_bytes", "open_image"]
