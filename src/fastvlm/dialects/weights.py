"""The weight files of a folder: which there are, what their headers promise, and one tensor at a time from them.

Headers are read without touching a tensor, and checked: a file that is shorter than its header says, an index that
names what is not there and a key that stands in two files are errors here, before anything is built. Pickled files
(``.bin``) are unpickled with ``weights_only=True``: tensors and plain containers, never code.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastvlm.dialects.quantised_file import QUANTISED_FILE, REST_FILE, QuantisedWeights, quantised_weights_of
from fastvlm.errors import CheckpointError

__all__ = ["DTYPES", "TensorEntry", "WeightFiles", "some_of"]

# safetensors' names of the types that a header may give.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_FETCH_AGAIN = "Fetch the file again, or take the whole folder from its source."


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor stands and what it is; `file` is its path."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class WeightFiles:
    """All tensors of a folder by the names they have in the files.

    Args:
        folder: the checkpoint's folder.
        entries: file key -> :class:`TensorEntry`.
        quantised: the decoder's products, where these are stored in 8 or 4 bits; None elsewhere. Their entries and
            tensors are those of the weights as they were before, rounded.
        left_out_dtype: if given, products are not read: in their place stand zeros of this dtype, of no memory.
    """

    folder: Path
    entries: dict[str, TensorEntry]
    quantised: QuantisedWeights | None = None
    left_out_dtype: torch.dtype | None = None
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, folder: Path) -> WeightFiles:
        """Read the headers of the weight files that transformers would take: safetensors first, then ``.bin``.

        Raises:
            CheckpointError: no weights, a file missing, truncated or unreadable, an index that does not fit.
        """
        quantised = quantised_weights_of(folder)
        files, index = _find_files(folder) if quantised is None else ([folder / REST_FILE], None)
        entries: dict[str, TensorEntry] = {}
        for file in files:
            header = read_header(file) if file.suffix == ".safetensors" else _read_pickle_header(file)
            if twice := sorted(entries.keys() & header.keys()):
                raise CheckpointError(
                    f"{folder} holds {some_of(twice)} twice, in {entries[twice[0]].file.name} and in {file.name}. "
                    "Shards of two checkpoints seem to be mixed. " + _FETCH_AGAIN
                )
            entries.update(header)
        _check_index(folder, index, entries)
        if quantised is not None:
            file = folder / QUANTISED_FILE
            entries |= {name: TensorEntry(file, shape, quantised.dtype) for name, shape in quantised.shapes.items()}
        return cls(folder, entries, quantised)

    @property
    def files(self) -> list[Path]:
        """The weight files, in order."""
        return sorted({entry.file for entry in self.entries.values()})

    def lazy(self, key: str) -> Any:
        """The tensor of file key `key`, read when indexed (``lazy(key)[...]``): a safetensors slice or a tensor."""
        if self._is_product(key):
            return _Later(self, key)
        handle = self._handle(self.entries[key].file)
        return handle[key] if isinstance(handle, dict) else handle.get_slice(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor of file key `key`, on the CPU, mapped from the file where that is possible."""
        if self.quantised is not None and self._is_product(key):
            if self.left_out_dtype is None:
                return self.quantised.tensor(key)
            return torch.zeros((), dtype=self.left_out_dtype).expand(self.entries[key].shape)
        handle = self._handle(self.entries[key].file)
        tensor: Tensor = handle[key] if isinstance(handle, dict) else handle.get_tensor(key)
        return tensor

    def close(self) -> None:
        """Let go of all open files; tensors already handed out stay valid."""
        self._open.clear()

    def _is_product(self, key: str) -> bool:
        return self.quantised is not None and key in self.quantised.shapes

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = _open_safetensors(file) if file.suffix == ".safetensors" else _unpickle(file)
        return self._open[file]


@dataclass(frozen=True)
class _Later:
    """A tensor of `weights` that is made when it is indexed, as slices of safetensors are."""

    weights: WeightFiles
    key: str

    def __getitem__(self, index: Any) -> Tensor:
        return self.weights.tensor(self.key)[index]

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.weights.entries[self.key].shape)


def some_of(names: Iterable[str], limit: int = 10) -> str:
    """The first `limit` of `names`, quoted, and how many more there are."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _find_files(folder: Path) -> tuple[list[Path], Path | None]:
    """Weight files in transformers' order of preference, and the index that names them if there is one."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return [single], None
        if index.is_file():
            return _files_of_index(index), index
    shards = sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"})
    if shards:
        raise CheckpointError(
            f"{folder} has weight files ({some_of(shards, 3)}) but neither 'model.safetensors' nor "
            "'model.safetensors.index.json', which says what stands where. Fetch the index file too."
        )
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors, model.safetensors.index.json with its shards, or the "
        f"same as pytorch_model*.bin; found {some_of(sorted(p.name for p in folder.iterdir())) or 'nothing'}."
    )


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a decoding error is a ValueError too
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. {_FETCH_AGAIN}") from error


def _weight_map(index: Path) -> Mapping[str, str]:
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) and Path(v).name == v for v in table.values()):
        raise CheckpointError(
            f"{index} has no 'weight_map' from tensor names to files of the same folder. {_FETCH_AGAIN}"
        )
    return table


def _files_of_index(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    if lost := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index.name} names {len(names)} weight files, but {some_of(lost)} of them {'are' if lost[1:] else 'is'} "
            f"not in {index.parent}. The download seems incomplete: fetch the missing files."
        )
    return [index.parent / name for name in names]


def _check_index(folder: Path, index: Path | None, entries: Mapping[str, TensorEntry]) -> None:
    if index is None:
        return
    table = _weight_map(index)
    if lost := [key for key, name in table.items() if key not in entries or entries[key].file.name != name]:
        raise CheckpointError(
            f"{index.name} in {folder} names {len(lost)} tensors that are not in the file it gives for them: "
            f"{some_of(lost)}. Index and shards are of different checkpoints. " + _FETCH_AGAIN
        )


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Entries of one safetensors file, from its header alone; the file's length is checked against it.

    Layout: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository, or download it."
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{file} is not a safetensors file, or only its beginning: it has {size} bytes, and its first eight "
                f"announce a header of {length}. {_FETCH_AGAIN}"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {
            key: TensorEntry(file, tuple(value["shape"]), DTYPES[value["dtype"]]) for key, value in header.items()
        }
        end = max((value["data_offsets"][1] for value in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a header that is not safetensors': {error!r}. {_FETCH_AGAIN}") from error
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file} has {size} bytes, but its header promises {8 + length + end}: it is "
            f"{'truncated' if size < 8 + length + end else 'longer than it should be'}. {_FETCH_AGAIN}"
        )
    return entries


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be opened: {error}. {_FETCH_AGAIN}") from error


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file; mapped, not read, if it is a zip file (torch >= 1.6)."""
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} was refused: it holds more than tensors, and unpickling it could run code "
            f"({str(error).splitlines()[0]}). Ask its author for safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}: {error}). {_FETCH_AGAIN}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no dictionary of tensors, but {type(content).__name__}. {_FETCH_AGAIN}")
    return content


def _read_pickle_header(file: Path) -> dict[str, TensorEntry]:
    return {key: TensorEntry(file, tuple(value.shape), value.dtype) for key, value in _unpickle(file).items()}
