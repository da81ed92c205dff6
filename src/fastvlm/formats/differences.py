"""Compares the keys that a network expects with those of a checkpoint: missing, unexpected, or of another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastvlm.formats.names import ENCODER, is_multi_branch
from fastvlm.formats.weight_sets import some_of

Shape = tuple[int, ...]
# BatchNorms' step counters decide nothing in a trained network, and old files do not have them; rotary frequencies
# are computed, and old files do have them.
_OPTIONAL = "num_batches_tracked"
_COMPUTED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Differences:
    """Between a network and a checkpoint, by canonical names, each in the network's or the file's order.

    Args:
        missing: the network has them, the checkpoint does not.
        unexpected: the checkpoint has them, the network does not.
        reshaped: (name, shape in the checkpoint, shape in the network).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    @classmethod
    def between(cls, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> Differences:
        """Compare two tables of name -> shape."""
        return cls(
            missing=tuple(k for k in expected if k not in found and not k.endswith(_OPTIONAL)),
            unexpected=tuple(k for k in found if k not in expected and not k.endswith((_OPTIONAL, _COMPUTED))),
            reshaped=tuple((k, found[k], shape) for k, shape in expected.items() if found.get(k, shape) != shape),
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def report(self, owner: str) -> str:
        """A message with counts, the first ten names of each kind, and their probable cause."""
        lines = [f"{owner} does not fit the network that its config.json describes."]
        if self.missing:
            lines.append(f"{len(self.missing)} missing: {some_of(self.missing)}.")
        if self.unexpected:
            lines.append(f"{len(self.unexpected)} unexpected: {some_of(self.unexpected)}.")
        if self.reshaped:
            shown = (f"{name} is {list(has)}, expected {list(wants)}" for name, has, wants in self.reshaped[:10])
            more = f" and {len(self.reshaped) - 10} more" if len(self.reshaped) > 10 else ""
            lines.append(f"{len(self.reshaped)} of another shape: {'; '.join(shown)}{more}.")
        return "\n  ".join([*lines, self._meaning()])

    def _meaning(self) -> str:
        reshaped = [name for name, _, _ in self.reshaped]
        if _all_in(reshaped, "multi_modal_projector.") and not (self.missing or self.unexpected):
            return "The projector was trained for another decoder or encoder: take both from one checkpoint."
        if _all_in(reshaped, "embed_tokens.", "lm_head.") and not (self.missing or self.unexpected):
            return "The vocabulary differs: config.json and weights are of different checkpoints."
        if is_multi_branch(self.missing) != is_multi_branch(self.unexpected):
            return "The encoder is in the other form (fused or multi-branch): set model_args['inference_mode'] to fit."
        if self.missing and self.unexpected and _all_in([*self.missing, *self.unexpected], ENCODER):
            return "The encoder has another architecture than vision_config.model_args says."
        if self.missing and not self.unexpected and not reshaped:
            return "The download may be incomplete, or a shard is of another checkpoint: fetch the folder again."
        return "Configuration and weights seem to be of different checkpoints: take both from one source."


def _all_in(names: Iterable[str], *parts: str) -> bool:
    names = list(names)
    return bool(names) and all(any(part in name for part in parts) for name in names)
