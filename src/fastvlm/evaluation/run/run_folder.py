"""The output folder of a run: it is refused for another checkpoint, other questions or other settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvlm.errors import UsageError
from fastvlm.evaluation.questions import Question
from fastvlm.storage.run_identity import differences
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.whole_folders import remove_leftovers
from fastvlm.storage.write_errors import clear_write_errors

FILES = ("predictions.jsonl", "blind.jsonl", "run.json", "summary.json", "worst.html")


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
    if different := differences(file, identity):
        raise UsageError(
            f"{folder} has predictions of another run: {different}. Name another --out, or start over with --restart."
        )
