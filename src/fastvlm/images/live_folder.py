"""A folder -> its new and changed image files as live frames, in the order of their times of change."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.images.limits import DEFAULT_LIMITS, ImageLimits
from fastvlm.images.live_frames import LiveFrame
from fastvlm.images.opening import open_image

POLL_S = 0.25
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
_MAX_FILES = 100_000
_State = tuple[int, int]  # time of change in ns, bytes


@dataclass(frozen=True)
class FolderSource:
    """The image files in a folder, not in those below it. Files that are there at the start count as known.

    A file is given when it has been the same for :data:`POLL_S`, so that its writer has finished. Each file is given:
    none is dropped, and none is compared with another.
    """

    folder: Path
    limits: ImageLimits = DEFAULT_LIMITS
    kind = "folder"

    @property
    def name(self) -> str:
        """How messages call it."""
        return repr(str(self.folder))

    def check(self) -> None:
        """Raise ImageError if the folder cannot be read."""
        self._scan()

    def frames(
        self, stop: threading.Event, warn: Callable[[str], None], *, is_paced: bool = True
    ) -> Generator[LiveFrame]:
        """New and changed files until `stop` is set; arguments as :meth:`VideoSource.frames`.

        Raises:
            ImageError: the folder is gone, cannot be read, or has too many files.
        """
        del warn, is_paced
        known = self._scan()
        start_s, number, before = time.monotonic(), 0, known
        while not stop.wait(POLL_S):
            now = self._scan()
            settled = {name: state for name, state in now.items() if before.get(name) == state}
            new = sorted((state, name) for name, state in settled.items() if known.get(name) != state)
            for _, name in new:
                number += 1
                decode: Callable[[], Image.Image] = partial(open_image, self.folder / name, limits=self.limits)
                yield LiveFrame(decode, number, time.monotonic() - start_s, name)
            known = {name: state for name, state in known.items() if name in now} | settled
            before = now

    def _scan(self) -> dict[str, _State]:
        """Time and size of each image file by its name."""
        found: dict[str, _State] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or not entry.name.lower().endswith(_SUFFIXES):
                        continue
                    state = _state(entry)
                    if state is not None:
                        found[entry.name] = state
                    if len(found) > _MAX_FILES:
                        raise ImageError(f"{self.name} has more than {_MAX_FILES} images. Watch an emptier folder.")
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read ({error.strerror}). Check the folder.") from error
        return found


def _state(entry: os.DirEntry[str]) -> _State | None:
    try:
        if not entry.is_file():
            return None
        found = entry.stat()
    except OSError:  # gone since the folder was listed
        return None
    return found.st_mtime_ns, found.st_size
