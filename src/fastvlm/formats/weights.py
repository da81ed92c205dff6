"""Weight files of a folder: their checked headers, and their tensors one at a time.

Headers are read and checked before anything is built: a truncated file, an index that names a missing file and a key in
two files are errors. Pickled files (``.bin``) are unpickled with ``weights_only=True``: tensors and plain containers,
never code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm.formats.compressed_tensors import PARTS, compressed_weights
from fastvlm.formats.json_files import FETCH_AGAIN
from fastvlm.formats.pickle_file import read_pickle
from fastvlm.formats.quantized_file import QuantizedWeights, quantized_weights_of
from fastvlm.formats.quantized_metadata import QUANTIZED_FILE, REST_FILE
from fastvlm.formats.safetensors_header import TensorEntry, read_header
from fastvlm.formats.weight_sets import WeightSet, one_weight_set, some_of, weight_map

_PACKED_PARTS = tuple(f".{part}" for part in PARTS)


@dataclass
class WeightFiles:
    """All tensors of a folder by their names in the files.

    Args:
        folder: the checkpoint's folder.
        entries: file key -> :class:`TensorEntry`.
        quantized: the decoder's linear layers if they are stored in 8 or 4 bits, else None. Their entries and tensors
            are those of the dequantized weights.
    """

    folder: Path
    entries: dict[str, TensorEntry]
    quantized: QuantizedWeights | None = None
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, folder: Path) -> WeightFiles:
        """Read the headers of the weight files in transformers' order: safetensors first, then ``.bin``.

        Raises:
            CheckpointError: no weights; a file is missing, truncated or unreadable; an index that does not match.
        """
        found = _find_files(folder)
        entries: dict[str, TensorEntry] = {}
        for file in found.files:
            header = read_header(file) if file.suffix == ".safetensors" else _read_pickle_header(file)
            if file.name == QUANTIZED_FILE:  # its tensors are parts of the weights that are added below
                continue
            if twice := sorted(entries.keys() & header.keys()):
                raise CheckpointError(
                    f"{folder} holds {some_of(twice)} twice, in {entries[twice[0]].file.name} and in {file.name}. "
                    "Shards of two checkpoints seem to be mixed. " + FETCH_AGAIN
                )
            entries.update(header)
        _check_index(folder, found.index, entries)
        quantized = quantized_weights_of(folder)
        if quantized is not None:
            file = folder / QUANTIZED_FILE
            entries |= {name: TensorEntry(file, shape, quantized.dtype) for name, shape in quantized.shapes.items()}
            return cls(folder, entries, quantized)
        return cls(folder, entries)._with_compressed()

    def _with_compressed(self) -> WeightFiles:
        """Itself, or with the weights that are packed as compressed-tensors does in place of their parts."""
        quantized = compressed_weights(self.folder, self.entries, self.tensor)
        if quantized is None:
            return self
        files = {name.removesuffix("_packed"): entry.file for name, entry in self.entries.items()}
        entries = {name: entry for name, entry in self.entries.items() if not name.endswith(_PACKED_PARTS)}
        entries |= {name: TensorEntry(files[name], shape, quantized.dtype) for name, shape in quantized.shapes.items()}
        return WeightFiles(self.folder, entries, quantized)

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return sorted({entry.file for entry in self.entries.values()})

    def lazy(self, key: str) -> Any:
        """The tensor of file key `key`, read when indexed (``lazy(key)[...]``): a safetensors slice or a tensor."""
        if self._is_rounded_linear(key):
            return _Later(self, key)
        handle = self._handle(self.entries[key].file)
        return handle[key] if isinstance(handle, dict) else handle.get_slice(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor of file key `key`, on the CPU, mapped from the file if possible."""
        if self.quantized is not None and self._is_rounded_linear(key):
            return self.quantized.tensor(key)
        handle = self._handle(self.entries[key].file)
        tensor: Tensor = handle[key] if isinstance(handle, dict) else handle.get_tensor(key)
        return tensor

    def close(self) -> None:
        """Close all open files; returned tensors stay valid."""
        self._open.clear()

    def _is_rounded_linear(self, key: str) -> bool:
        return self.quantized is not None and key in self.quantized.shapes

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = _open_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
        return self._open[file]


@dataclass(frozen=True)
class _Later:
    """A tensor of `weights` that is read when indexed, like a slice of safetensors."""

    weights: WeightFiles
    key: str

    def __getitem__(self, index: Any) -> Tensor:
        return self.weights.tensor(self.key)[index]

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.weights.entries[self.key].shape)


def _find_files(folder: Path) -> WeightSet:
    """The folder's weights; safetensors first, as transformers has it."""
    quantized = tuple(file for file in (folder / QUANTIZED_FILE, folder / REST_FILE) if file.is_file())
    first = WeightSet(quantized) if (folder / REST_FILE).is_file() else None
    found = one_weight_set(folder, "model.safetensors", "pytorch_model.bin", first=first)
    if found is not None:
        return found
    shards = sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"})
    if shards:
        raise CheckpointError(
            f"{folder} has weight files ({some_of(shards, 3)}) but neither 'model.safetensors' nor "
            "'model.safetensors.index.json', which maps tensors to files. Fetch the index file too."
        )
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors, model.safetensors.index.json with its shards, or the "
        f"same as pytorch_model*.bin; found {some_of(sorted(p.name for p in folder.iterdir())) or 'nothing'}."
    )


def _check_index(folder: Path, index: Path | None, entries: Mapping[str, TensorEntry]) -> None:
    if index is None:
        return
    table = weight_map(index)
    if lost := [key for key, name in table.items() if key not in entries or entries[key].file.name != name]:
        raise CheckpointError(
            f"{index.name} in {folder} names {len(lost)} tensors that are not in the file it gives for them: "
            f"{some_of(lost)}. Index and shards are of different checkpoints. " + FETCH_AGAIN
        )


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be opened: {error}. {FETCH_AGAIN}") from error


def _read_pickle_header(file: Path) -> dict[str, TensorEntry]:
    return {key: TensorEntry(file, tuple(value.shape), value.dtype) for key, value in read_pickle(file).items()}
