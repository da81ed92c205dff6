"""What a user chose on the command line, checked; plain values that cost nothing to make."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass
from typing import Any

from fastvlm.cli.options import (
    DEFAULT_MODEL,
    AdapterOption,
    BitsOption,
    DeviceOption,
    DtypeOption,
    EncoderBitsOption,
    FitOption,
    ImageSizeOption,
    MaxNewTokensOption,
    ModelOption,
    PromptLookupOption,
    RevisionOption,
    RuntimeOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
)
from fastvlm.config import BITS, ENCODER_BITS
from fastvlm.config_limits import parse_size
from fastvlm.engine.types import SamplingParams, check_lookup
from fastvlm.errors import UsageError
from fastvlm.formats.places import adapter_folder

DTYPES = ("auto", "float32", "bfloat16", "float16")
ONNX_DTYPES = ("auto", "fp32", "fp16", "q8", "q4", "q4f16")
RUNTIMES = ("torch", "onnx")
IMAGE_FITS = ("pad", "crop", "stretch")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class ModelChoice:
    """Which checkpoint, where and how; None leaves it to the checkpoint or the machine.

    Args:
        name: the shipped checkpoint's name, a folder, or a Hub name.
        revision: branch, tag or commit of a Hub name.
        device, dtype: where the weights lie and what is computed in; dtype ``"auto"`` is the checkpoint's own,
            or what the machine is fast in.
        bits: of the decoder's weights on a CPU; 16 for what the checkpoint has.
        encoder_bits: of the image encoder's weights on a CPU; 16 for what the checkpoint has.
        image_fit, image_size: how an image is brought to which size, as typed: ``512`` or ``768x1024``.
        adapter: folder of an adapter that is added into the weights.
        prompt_lookup: maximum tokens that a prompt lookup drafts; None for no lookup.
        runtime: what computes; None for what the folder is made for.

    Raises:
        UsageError: a word that is not known.
        CheckpointError: `adapter` is not the folder of an adapter.
    """

    name: ModelOption = DEFAULT_MODEL
    revision: RevisionOption = None
    device: DeviceOption = None
    dtype: DtypeOption = "auto"
    image_fit: FitOption = None
    image_size: ImageSizeOption = None
    bits: BitsOption = 16
    adapter: AdapterOption = None
    prompt_lookup: PromptLookupOption = None
    encoder_bits: EncoderBitsOption = 16
    runtime: RuntimeOption = None

    def __post_init__(self) -> None:
        if self.runtime is not None:
            check_word("--runtime", self.runtime, RUNTIMES)
        check_word("--dtype", self.dtype, ONNX_DTYPES if self.runtime == "onnx" else DTYPES)
        if self.bits not in BITS:
            raise UsageError(f"--bits is {self.bits}; expected 16, 8 or 4.")
        if self.encoder_bits not in ENCODER_BITS:
            raise UsageError(f"--encoder-bits is {self.encoder_bits}; expected 16 or 8.")
        if self.image_fit is not None:
            check_word("--image-fit", self.image_fit, IMAGE_FITS)
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device is {self.device!r}; expected cpu, cuda, mps or xpu, with a number: cuda:1.")
        parse_size(self.image_size)
        check_lookup(self.prompt_lookup, "--prompt-lookup")
        if self.adapter is not None:
            adapter_folder(self.adapter)

    @property
    def image_size_px(self) -> tuple[int, int] | None:
        """Height and width in pixels, None to keep the checkpoint's."""
        return parse_size(self.image_size)

    def settings(self) -> dict[str, Any]:
        """All but the name and its revision, for :func:`fastvlm.opening.open_engine`."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "bits": self.bits,
            "encoder_bits": self.encoder_bits,
            "adapter": self.adapter,
            "image_size": self.image_size_px,
            "image_fit": self.image_fit,
            "prompt_lookup_num_tokens": self.prompt_lookup,
            "runtime": self.runtime,
        }


def check_word(flag: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` of the option `flag` is one of the words `known`."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{flag} is {value!r}; expected one of {', '.join(known)}.{hint}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked: the likeliest at `temperature` 0, else drawn, from the likeliest `top_p` of them.

    Raises:
        UsageError: a number outside its range.
    """

    max_new_tokens: MaxNewTokensOption = 256
    temperature: TemperatureOption = 0.0
    top_p: TopPOption = None
    seed: SeedOption = None

    def __post_init__(self) -> None:
        try:
            SamplingParams(**self.settings())
        except UsageError as error:  # it begins with the name of the setting
            name, _, rest = str(error).partition(" ")
            raise UsageError(f"--{name.replace('_', '-')} {rest}") from error

    @property
    def has_idle_top_p(self) -> bool:
        """True if `top_p` was given and nothing is drawn."""
        return self.temperature == 0 and self.top_p is not None

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`SamplingParams`."""
        return {**asdict(self), "top_p": 1.0 if self.top_p is None else self.top_p}
