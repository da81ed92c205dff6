"""Reads tensors of a ``.bin`` file: unpickled with ``weights_only=True``, within limits set by the file's size.

``torch.save`` stores every record of its zip file uncompressed. A compressed record could expand from megabytes to
gigabytes and cannot be mapped, so it is refused before anything is decompressed.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import FETCH_AGAIN

_MAX_RECORDS = 100_000  # one per tensor: a 7B has 750
_MAX_PICKLE_BYTES = 16 << 20  # of the record that names the tensors: about 150 bytes each
_END_BYTES = 22 + 65_535 + 20  # end of a zip's directory, its longest comment, and what points to the 64-bit form
_ASK_AUTHOR = "Ask its author for safetensors."


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file; mapped, not read, if it is a zip file (torch >= 1.6).

    Raises:
        CheckpointError: unreadable, compressed, more than tensors in it, or tensors larger than the file.
    """
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"
            if is_zip:
                _check_zip(file, stream)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} was refused: it holds more than tensors, and unpickling it could run code "
            f"({str(error).splitlines()[0]}). {_ASK_AUTHOR}"
        ) from error
    except Exception as error:  # a broken pickle makes torch raise whatever its next step stumbles over
        raise CheckpointError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}: {error}). {FETCH_AGAIN}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no dictionary of tensors, but {type(content).__name__}. {FETCH_AGAIN}")
    _check_tensors(file, content)
    return content


def _check_tensors(file: Path, content: dict[str, Tensor]) -> None:
    size = file.stat().st_size
    for key, tensor in content.items():
        if not isinstance(key, str) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{file} holds {key!r}, which is not a named tensor. {_ASK_AUTHOR}")
        if tensor.numel() * tensor.itemsize > size:
            raise CheckpointError(
                f"{file} holds {key!r} of shape {list(tensor.shape)}, which is larger than the whole file ({size} "
                f"bytes). {_ASK_AUTHOR}"
            )


def _check_zip(file: Path, stream: BinaryIO) -> None:
    """Refuse compressed records, and more of them than a checkpoint has."""
    num_records = _num_records(stream, file.stat().st_size)
    if num_records > _MAX_RECORDS:
        raise CheckpointError(f"{file} holds {num_records} records; a checkpoint's has at most {_MAX_RECORDS}.")
    with zipfile.ZipFile(file) as opened:
        for record in opened.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise CheckpointError(
                    f"{file} is compressed: {record.filename!r} would grow from {record.compress_size} to "
                    f"{record.file_size} bytes. torch.save never does that. {_ASK_AUTHOR}"
                )
            if record.filename.endswith(".pkl") and record.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{file} needs {record.file_size} bytes to name its tensors; expected at most {_MAX_PICKLE_BYTES}. "
                    + _ASK_AUTHOR
                )


def _num_records(stream: BinaryIO, size: int) -> int:
    """What the end of the zip file announces; raises ValueError or struct.error if it is cut off.

    Source: PKWARE's APPNOTE.TXT 6.3.10, 4.3.14 to 4.3.16.
    """
    stream.seek(max(size - _END_BYTES, 0))
    tail = stream.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise ValueError("the end of the zip file is missing")
    if place >= 20 and tail[place - 20 : place - 16] == b"PK\x06\x07":  # the 64-bit form
        stream.seek(struct.unpack_from("<Q", tail, place - 12)[0])
        return int(struct.unpack_from("<Q", stream.read(56), 32)[0])
    return int(struct.unpack_from("<H", tail, place + 10)[0])
