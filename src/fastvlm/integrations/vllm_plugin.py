"""Entry point of vLLM: its group ``vllm.general_plugins`` names :func:`register`.

vLLM calls it once in each of its processes, so it imports no model: classes are registered by their paths. vLLM only
logs an exception raised here, so the configuration classes of our model types report an unsupported version.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from fastvlm.errors import InstallationError, MissingExtraError

OLDEST, NEWEST = (0, 29), (0, 33)  # versions of vLLM whose interfaces `vllm_model` and `vllm_processor` fit
ARCHITECTURES = ("FastVlmForConditionalGeneration", "LlavaQwen2ForCausalLM")  # of fast_vlm and of Apple's folders
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")  # for folders that bring none
_MODEL = "fastvlm.integrations.vllm_model:FastVlmForVllm"


def register() -> None:
    """Let vLLM find the model types ``fast_vlm`` and ``llava_qwen2``; calling it again changes nothing.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    try:
        import vllm  # noqa: PLC0415 - it is there when it calls us
        from vllm import ModelRegistry  # noqa: PLC0415
        from vllm.transformers_utils.chat_templates import registry  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_vllm(error) from error
    from transformers import AutoConfig  # noqa: PLC0415 - vLLM has imported it

    from fastvlm.hf.config import FastVlmConfig, LlavaQwen2Config  # noqa: PLC0415

    problem = version_problem(str(vllm.__version__))
    for config in (FastVlmConfig, LlavaQwen2Config):
        AutoConfig.register(config.model_type, config if problem is None else _refusing(config, problem), exist_ok=True)
        registry.register_chat_template_fallback_path(config.model_type, CHAT_TEMPLATE)
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, _MODEL)


def missing_vllm(error: ModuleNotFoundError) -> ImportError:
    """The exception for a failed import of vLLM."""
    return MissingExtraError.of_import(error, "vllm", "vllm", "The plugin of vLLM")


def version_problem(version: str) -> str | None:
    """What is wrong with this version of vLLM; None for a supported one."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        return None
    oldest, newest = ("{}.{}".format(*each) for each in (OLDEST, NEWEST))
    return (
        f"vLLM {version} is installed; this version of fastvlm supports vLLM {oldest} to {newest}. Install one of "
        "them, or a newer fastvlm."
    )


def _refusing(config: type[Any], problem: str) -> type[Any]:
    """A configuration class for the same model type that raises InstallationError when a checkpoint is opened."""

    def from_dict(_cls: type[Any], /, _config_dict: dict[str, Any], **_: Any) -> NoReturn:
        raise InstallationError(problem)

    return type(f"Unsupported{config.__name__}", (config,), {"from_dict": classmethod(from_dict)})
