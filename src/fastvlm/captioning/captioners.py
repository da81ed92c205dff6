"""A captioner from plain settings, which can be sent to another machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastvlm.captioning.rows import Captioner

KEY_VARIABLES = ("FASTVLM_API_KEY", "OPENAI_API_KEY")


def make_captioner(settings: Mapping[str, Any]) -> Captioner:
    """The captioner that `settings` describe.

    Args:
        settings: of :class:`fastvlm.captioning.UrlCaptioner` if there is a `url`, whose key is in one of
            :data:`KEY_VARIABLES`; else of :func:`fastvlm.captioning.open_captioner`, with `sampling` (the fields of
            :class:`fastvlm.SamplingParams`) in place of `params`.

    Raises:
        FastVlmError: what these raise.
    """
    if "url" in settings:
        from fastvlm.captioning.url_captioner import UrlCaptioner  # noqa: PLC0415  # needs no torch, the other one does

        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        return UrlCaptioner(**settings, api_key=key)
    from fastvlm.captioning.engine_captioner import open_captioner  # noqa: PLC0415
    from fastvlm.engine.types import SamplingParams  # noqa: PLC0415

    further = {name: value for name, value in settings.items() if name != "sampling"}
    return open_captioner(**further, params=SamplingParams(**settings.get("sampling", {})))
