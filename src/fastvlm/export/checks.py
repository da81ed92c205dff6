"""Comparison of exported files with their source: visual tokens, logits, and the first tokens of greedy replies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import fastvlm
from fastvlm.backends.generators import finished
from fastvlm.backends.local import LocalBackend, make_backend
from fastvlm.errors import ExportError, NonFiniteError
from fastvlm.export.graphs import LARGEST_HALF, VisionGraph, largest_activation
from fastvlm.export.source import ExportSource
from fastvlm.model.joint import join_image_and_text

NUM_TOKENS = 16  # of each greedy reply that are compared
CHECK_QUESTION = "What do you see?"
# Images that come with the package, and a question about each.
EXAMPLES = {
    "letter.png": "What letter is this?",
    "red_star.png": "What shape is it?",
    "five_shapes.png": "How many shapes are there?",
    "word.png": "What does it say?",
    "objects.png": "What do you see?",
    "shapes.png": "What shape is orange?",
}
_MOST_LOGITS_OFF = 0.02  # of float32 files, over the largest logit; 1e-5 is usual, wrong graphs are off by about 1
_NEAR_OVERFLOW = 0.9  # of float16's largest number
_SOURCE_CONTEXT = 4096  # tokens of the source's cache


class Computes(Protocol):
    """The part of a :class:`fastvlm.backends.backend.Backend` that a comparison needs; see there."""

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]: ...  # noqa: D102
    def embed(self, token_ids: Sequence[int]) -> Tensor: ...  # noqa: D102
    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor: ...  # noqa: D102
    def logits(self, hidden: Tensor) -> Tensor: ...  # noqa: D102
    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Sample:
    """A question about one image as a model's inputs: pixels (1, 3, H, W) and T token ids with N placeholders."""

    name: str
    pixel_values: Tensor
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a backend computes for a sample: visual tokens (N, D), logits (V,) behind the prompt, greedy token ids."""

    features: Tensor
    logits: Tensor
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """How far a variant's files are from the source, over all samples.

    Attributes:
        variant: a dtype of the export.
        features: largest difference of the visual tokens, over the largest of the source's.
        logits: the same of the logits behind the prompt.
        num_equal_tokens, num_tokens: tokens of greedy replies up to the first that differs, and of all replies.
        images: names of the samples.
    """

    variant: str
    features: float
    logits: float
    num_equal_tokens: int
    num_tokens: int
    images: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.variant}: visual tokens {self.features:.1e} off, logits {self.logits:.1e}, "
            f"{self.num_equal_tokens} of {self.num_tokens} greedy tokens equal"
        )


def samples(source: ExportSource, images: Sequence[str] = ()) -> list[Sample]:
    """The shipped example images, then `images` (paths), each with a question.

    Raises:
        ImageError: an image that cannot be opened.
    """
    shipped = Path(fastvlm.__file__).parent / "web" / "page" / "examples"
    asked = [(str(shipped / name), question) for name, question in EXAMPLES.items() if (shipped / name).is_file()]
    asked += [(image, CHECK_QUESTION) for image in images]
    return [_sample(source, image, question) for image, question in asked]


def _sample(source: ExportSource, image: str, question: str) -> Sample:
    processor = source.checkpoint.processor
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text, _ = processor.prompt([{"role": "user", "content": content}])
    pixels = processor.image_processor(image)["pixel_values"]
    return Sample(Path(image).name, pixels, tuple(processor.token_ids(text, 1)))


def source_answers(source: ExportSource, asked: Sequence[Sample]) -> list[Answer]:
    """What the checkpoint computes in float32; its weights are held only meanwhile."""
    backend = source_backend(source, asked)
    return [answer(backend, sample, source) for sample in asked]


def source_backend(source: ExportSource, asked: Sequence[Sample]) -> LocalBackend:
    """The checkpoint in float32 by the engine's own kernels, for one of the samples at a time.

    They read weights as they are stored, and tests compare them with PyTorch's layers, which would take a float32 copy.
    """
    longest = max(len(sample.token_ids) for sample in asked) + NUM_TOKENS
    context = min(max(longest, _SOURCE_CONTEXT), source.checkpoint.config.text_config.max_position_embeddings)
    return make_backend(source.checkpoint, dtype=torch.float32, num_slots=1, context=context)


def overflow_warnings(graph: VisionGraph, asked: Sequence[Sample], files: str) -> tuple[str, ...]:
    """A warning if the encoder's numbers come near the end of float16.

    Args:
        graph: the encoder in float32.
        asked: its images; without any there is no warning.
        files: names of the files in half precision, for the message.
    """
    largest = max((largest_activation(graph, sample.pixel_values) for sample in asked), default=0.0)
    if largest < _NEAR_OVERFLOW * LARGEST_HALF:
        return ()
    warning = (
        f"inside the encoder numbers reach {largest:.0f}, and float16 ends at {LARGEST_HALF:.0f}: take {files} only "
        "after a check with images of your own (--check-images)."
    )
    return (warning,)


@torch.inference_mode()
def answer(backend: Computes, sample: Sample, source: ExportSource) -> Answer:
    """Visual tokens, logits and greedy tokens of one sample; the reply ends with an end token or NUM_TOKENS."""
    features = finished(backend.encode(sample.pixel_values)).float()
    ids = torch.tensor([sample.token_ids])
    is_placeholder = ids == source.checkpoint.config.image_token_index
    embeds = join_image_and_text(backend.embed(sample.token_ids).float()[None], features, is_placeholder)[0]
    logits = backend.logits(backend.prefill_chunk(embeds, 0, 0))[0].float().clone()
    tokens = [int(logits.argmax())]
    while len(tokens) < NUM_TOKENS and tokens[-1] not in source.checkpoint.stop_token_ids:
        position = len(sample.token_ids) + len(tokens) - 1
        tokens.append(int(backend.decode(tokens[-1:], [0], [position])[0].argmax()))
    return Answer(features[0].clone(), logits, tuple(tokens))


def check_variant(
    variant: str,
    ask: Callable[[Sample], Answer],
    asked: Sequence[Sample],
    expected: Sequence[Answer],
) -> Check:
    """Compare a variant's answers with the source's.

    Args:
        variant: its name; "fp32" must be near the source.
        ask: the variant's answer to a sample.
        asked, expected: samples and the source's answers to them.

    Raises:
        NonFiniteError: the files compute NaN or infinity.
        ExportError: float32 files that compute something else than their source.
    """
    features = logits = 0.0
    num_equal = num_tokens = 0
    for sample, wanted in zip(asked, expected, strict=True):
        found = ask(sample)
        for what, values in (("visual tokens", found.features), ("logits", found.logits)):
            if not bool(values.isfinite().all()):
                raise NonFiniteError(
                    f"The {variant} files compute NaN or infinity ({what} of {sample.name}): the model's numbers do "
                    f"not fit into this dtype. Leave {variant} out: --dtype names the others."
                )
        features = max(features, _distance(found.features, wanted.features))
        logits = max(logits, _distance(found.logits, wanted.logits))
        pairs = list(zip(found.tokens, wanted.tokens, strict=False))
        num_equal += next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
        num_tokens += len(wanted.tokens)
    if variant == "fp32" and not max(features, logits) <= _MOST_LOGITS_OFF:
        raise ExportError(
            f"The exported files do not compute what the checkpoint does: visual tokens are {features:.1e} and logits "
            f"{logits:.1e} off, at most {_MOST_LOGITS_OFF} is expected in float32. Nothing was written."
        )
    return Check(variant, features, logits, num_equal, num_tokens, tuple(sample.name for sample in asked))


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest magnitude of `wanted`."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
