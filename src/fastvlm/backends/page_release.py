"""Releases the resident pages of mapped weights after they have been copied into another layout.

Otherwise each weight is in memory twice, which determines the peak memory. The page cache keeps the pages, so reading
the tensor again gives the same values.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_PAGEMAP = Path("/proc/self/pagemap")  # a 64-bit word a page: Documentation/admin-guide/mm/pagemap.rst of Linux
_WORD_BYTES = 8
_FIRST_FLAG = 61  # bit 61: belongs to a file or is shared; 62: swapped out; 63: present
_FILE = 1


def release_pages(tensor: Tensor) -> int:
    """Release the resident pages of a file-backed `tensor`; its values do not change.

    Does nothing for memory that is not file-backed or was modified since it was mapped, and on systems other than
    Linux.

    Args:
        tensor: contiguous, on the CPU; others are ignored.

    Returns:
        Bytes released, in whole pages; 0 if nothing was done.
    """
    advise = _madvise()
    if advise is None or tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
        return 0
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    num_pages = -(-(tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE)
    if not _are_the_files(start, num_pages) or advise(start, num_pages * mmap.PAGESIZE, mmap.MADV_DONTNEED):
        return 0
    return num_pages * mmap.PAGESIZE


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """madvise(2), or None where it or the page map is missing."""
    if sys.platform != "linux" or not os.access(_PAGEMAP, os.R_OK):
        return None
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return found


def _are_the_files(start: int, num_pages: int) -> bool:
    """True if every resident page is an unmodified page of a file; releasing a modified page would lose its content."""
    try:
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            words = os.pread(pagemap.fileno(), num_pages * _WORD_BYTES, start // mmap.PAGESIZE * _WORD_BYTES)
    except OSError:
        return False
    if len(words) != num_pages * _WORD_BYTES:
        return False
    flags = torch.frombuffer(bytearray(words), dtype=torch.int64) >> _FIRST_FLAG & 7
    return bool(((flags == 0) | (flags & _FILE == _FILE)).all())
