"""Entry point of lmms-eval: its group ``lmms_eval.models`` names :func:`manifest`.

lmms-eval 0.7 (``lmms_eval/models/registry_v2.py``, ``load_entrypoint_manifests``) calls it while it makes its registry,
so this file imports nothing else of lmms-eval, and the model's class is named by its path only.
"""

from __future__ import annotations

from typing import Any

from fastvlm.errors import MissingExtraError

MODEL_ID = "fastvlm"
_CLASS = "fastvlm.integrations.lmms_eval.FastVlm"


def manifest() -> Any:
    """The ``ModelManifest`` of ``--model fastvlm``. Raises MissingExtraError outside lmms-eval."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest  # noqa: PLC0415 - it is there when it calls us
    except ImportError as error:
        raise MissingExtraError("lmms_eval", "lmms", "The plugin of lmms-eval") from error
    return ModelManifest(model_id=MODEL_ID, chat_class_path=_CLASS)
