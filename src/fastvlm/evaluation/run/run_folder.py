"""The output folder of a run: it is refused for another checkpoint, other questions or other settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.questions import Question
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.whole_folders import remove_leftovers
from fastvlm.storage.write_errors import clear_write_errors

FILES = ("predictions.jsonl", "blind.jsonl", "run.json", "summary.json", "worst.html")
_DECIDING = (".safetensors", ".bin", ".json", ".jinja")  # files of a checkpoint that change replies
_NUM_SAMPLES, _SAMPLE_BYTES = 32, 2**16


def checkpoint_digest(folder: Path) -> str:
    """Digest of a checkpoint: file names, sizes, and samples of each file (at most 2 MB).

    Training changes a file everywhere, so samples are enough; reading 15 GB would take longer than many runs.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _DECIDING and file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                for number in range(_NUM_SAMPLES):
                    stream.seek(size * number // _NUM_SAMPLES)
                    digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def questions_digest(questions: Sequence[Question]) -> str:
    """Digest of the questions' ids, texts and answers."""
    rows = [[question.id, question.test, question.text, *question.answers] for question in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def claim_folder(folder: Path, identity: Mapping[str, Any], *, is_restart: bool = False) -> None:
    """Prepare `folder` for this run: new, or of a run with the same model, questions and settings.

    `is_restart` removes what another run left there.

    Raises:
        UsageError: it holds the predictions of a different run, or cannot be written to.
        StorageError: the disk is full or failed.
    """
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if is_restart:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        _check_identity(folder, dict(identity))
        write_file(folder / "run.json", json.dumps(dict(identity), indent=1) + "\n")


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    file = folder / "run.json"
    if not file.is_file():
        if (folder / "predictions.jsonl").exists():
            raise UsageError(
                f"{folder} has predictions but no run.json, so they may be of anything. Name another --out."
            )
        return
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        earlier = {}
    now = json.loads(json.dumps(identity))
    other = [name for name in now if earlier.get(name) != now[name]]
    if other:
        differences = ", ".join(f"{name} {earlier.get(name)!r}, now {now[name]!r}" for name in other)
        raise UsageError(
            f"{folder} has predictions of another run: {differences}. Name another --out, or start over with --restart."
        )
