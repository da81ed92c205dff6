"""What a user chose on the command line, checked; plain values that cost nothing to make."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from fastvlm.config import BITS
from fastvlm.engine.types import TEMPERATURES, SamplingParams
from fastvlm.errors import UsageError
from fastvlm.formats.places import adapter_folder

DTYPES = ("auto", "float32", "bfloat16", "float16")
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
        image_fit, image_size: how an image is brought to which size, as typed: ``512`` or ``768x1024``.
        adapter: folder of an adapter that is added into the weights.

    Raises:
        UsageError: a word that is not known.
        CheckpointError: `adapter` is no folder of an adapter.
    """

    name: str
    revision: str | None = None
    device: str | None = None
    dtype: str = "auto"
    image_fit: str | None = None
    image_size: str | None = None
    bits: int = 16
    adapter: str | None = None

    def __post_init__(self) -> None:
        check_word("--dtype", self.dtype, DTYPES)
        if self.bits not in BITS:
            raise UsageError(f"--bits is {self.bits}; expected 16, 8 or 4.")
        if self.image_fit is not None:
            check_word("--image-fit", self.image_fit, IMAGE_FITS)
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device is {self.device!r}; expected cpu, cuda, mps or xpu, with a number: cuda:1.")
        parse_size(self.image_size)
        if self.adapter is not None:
            adapter_folder(self.adapter)

    @property
    def image_size_px(self) -> tuple[int, int] | None:
        """Height and width in pixels, None to keep the checkpoint's."""
        return parse_size(self.image_size)


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

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens is {self.max_new_tokens}; expected 1 or more.")
        if self.temperature != 0 and not low <= self.temperature <= high:  # NaN too
            raise UsageError(
                f"--temperature is {self.temperature}; expected 0 (the likeliest token) or {low} to {high:g}."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p}; expected a probability above 0, and at most 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}; expected 0 to 2^63 - 1.")

    @property
    def is_greedy(self) -> bool:
        """True if nothing is drawn."""
        return self.temperature == 0

    @property
    def has_idle_top_p(self) -> bool:
        """True if `top_p` was given and nothing is drawn."""
        return self.is_greedy and self.top_p is not None

    def params(self) -> SamplingParams:
        """The same for the engine; every setting is given, so that a checkpoint's generation config decides none."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
        )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width in pixels from ``512`` or ``768x1024`` (height first); None stays None.

    Raises:
        UsageError: anything else. Whether the model can take the size is the processor's to say.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip().lower())
    if match is None:
        raise UsageError(
            f"--image-size is {text!r}; expected a side in pixels such as 512, or HEIGHTxWIDTH such as 768x1024."
        )
    return int(match[1]), int(match[2] or match[1])
