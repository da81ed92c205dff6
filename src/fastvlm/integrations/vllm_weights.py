"""Names and shapes of checkpoint tensors on their way into vLLM. Does not import vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm.formats.names import APPLE_ENCODER, EMBEDDING, HEAD, names_from_apple, names_from_fast_vlm
from fastvlm.formats.quantized_metadata import QUANTIZED_FILE

# Canonical prefix -> that of the modules of `FastVlmForVllm`. vLLM also applies it to names in LoRA adapters and in
# configurations of quantization.
PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


def refuse_rounded_weights(model: str) -> None:
    """Raise CheckpointError for a folder written by ``fastvlm quantize``, whose weights vLLM does not read."""
    if (Path(model) / QUANTIZED_FILE).is_file():
        raise CheckpointError(
            f"{model} holds weights rounded by `fastvlm quantize`, which vLLM does not read. Serve the checkpoint that "
            f"it was made from, or write plain weights first: fastvlm convert {model} FOLDER."
        )


def canonical_weights(
    weights: Iterable[tuple[str, Tensor]], *, num_rows: int, is_tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint of any published layout under their canonical names.

    Apple's encoder comes last, because its names depend on which tensors there are. Tensors that the VLM does not use
    are left out.

    Args:
        weights: (name in the files, tensor), in any order.
        num_rows: of the embedding table and the head; shorter ones get rows of zeros.
        is_tied: whether the head is the embedding table. If not and no head comes, the table is the head.
    """
    apple_encoder: dict[str, Tensor] = {}
    embedding, has_head = None, False
    for key, tensor in weights:
        if key.startswith(APPLE_ENCODER):
            apple_encoder[key] = tensor
            continue
        name = _canonical(key)
        filled = _with_rows(tensor, num_rows) if name in (EMBEDDING, HEAD) else tensor
        embedding = filled if name == EMBEDDING else embedding
        has_head = has_head or name.startswith("lm_head.")
        yield name, filled
    if embedding is not None and not is_tied and not has_head:
        yield HEAD, embedding
    for key, encoder_name in names_from_apple(apple_encoder).items():
        if encoder_name is not None:
            yield encoder_name, apple_encoder[key]


def _canonical(key: str) -> str:
    """The canonical name of a tensor that does not belong to Apple's encoder."""
    name = names_from_apple([key])[key] or key
    return names_from_fast_vlm([name])[name]


def _with_rows(table: Tensor, num_rows: int) -> Tensor:
    """`table` (rows, D) with `num_rows` rows. Apple's own loader cuts the placeholder's row off."""
    if table.shape[0] >= num_rows:
        return table
    filled = table.new_zeros(num_rows, *table.shape[1:])
    filled[: table.shape[0]] = table
    return filled
