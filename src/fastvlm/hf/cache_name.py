"""The name under which transformers passes the key-value cache: ``past_key_values`` up to 5.23, ``cache`` from 5.24 on.

5.24 still takes the old name, with a deprecation warning. Our `forward` takes both, and passes on the one that the
installed version uses.
"""

from __future__ import annotations

from dataclasses import fields

from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from fastvlm.errors import ConfigError

CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def cache_argument(past_key_values: Cache | None, cache: Cache | None) -> dict[str, Cache | None]:
    """The given one of the two, under the name that the installed transformers uses. Raises ConfigError for both."""
    if past_key_values is not None and cache is not None:
        raise ConfigError("past_key_values and cache are two names of one argument; pass only one of them.")
    return {CACHE_NAME: past_key_values if cache is None else cache}
