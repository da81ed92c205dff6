"""Files that peers read, converted from a checkpoint: ``python -m fastvlm.bench.conversions NAME OPTIONS_JSON``.

Each is made in a process of its own, so that a peer's process holds what the peer needs and nothing else. A folder of
conversions belongs to one checkpoint: if that changes, they are made again.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.errors import MeasurementError
from fastvlm.storage.locks import exclusive_lock
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.write_errors import clear_write_errors

SOURCE = "source.json"  # the checkpoint that a folder of conversions was made from
_VERSION = 2  # of the conversions; another one makes them again
_LAST_WORDS = 300  # characters of stderr that an error quotes

# Name -> module and function, called with the checkpoint's folder, the file or folder to write, and options.
CONVERTERS = {
    "reference": ("fastvlm.bench.reference", "write_reference"),
    "gguf-decoder": ("fastvlm.bench.gguf_decoder", "convert"),
    "openvino-decoder": ("fastvlm.bench.openvino_folders", "write_decoder"),
    "openvino-encoder": ("fastvlm.bench.openvino_folders", "write_encoder"),
}


def converted(name: str, folder: str, work: str, file_name: str, **options: Any) -> Path:
    """The file or folder `file_name` in `work`, made from the checkpoint `folder` if it is not there.

    Args:
        name: a key of CONVERTERS.
        folder: the checkpoint.
        work: the folder of conversions; created if needed.
        options: of the converter.

    Raises:
        MeasurementError: the conversion failed, with its last words.
        StorageError, UsageError: `work` cannot be written.
    """
    place = Path(work).absolute()
    with clear_write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(place / ".lock", place):
        _tidy(place, source_of(Path(folder)))
        file = place / file_name
        if not file.exists():
            _run(name, {"folder": folder, "file": str(file), **options})
        return file


def source_of(folder: Path) -> dict[str, Any]:
    """What identifies a checkpoint: the names, sizes and times of its files."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return {"version": _VERSION, "folder": str(folder.resolve()), "files": stats}


def _tidy(work: Path, source: dict[str, Any]) -> None:
    """Remove the conversions of another checkpoint."""
    noted = work / SOURCE
    try:
        is_same = json.loads(noted.read_text(encoding="utf-8")) == source
    except (OSError, ValueError):
        is_same = False
    if not is_same:
        for file in work.iterdir():
            if file.name != ".lock":
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        write_file(noted, json.dumps(source))


def _run(name: str, options: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "fastvlm.bench.conversions", name, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own program
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasurementError(f"Converting the checkpoint ({name}) failed: {words[-_LAST_WORDS:]}")


def main(arguments: list[str]) -> int:
    """Make one conversion; it appears when all of it is written."""
    name, options = arguments[0], json.loads(arguments[1])
    module, function = CONVERTERS[name]
    convert: Callable[..., None] = getattr(importlib.import_module(module), function)
    convert(options.pop("folder"), Path(options.pop("file")), **options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
