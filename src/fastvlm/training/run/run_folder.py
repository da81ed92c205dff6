"""The folder of a run: recipe, log, and checkpoints that are written atomically.

recipe.yaml      the recipe with all keys
data.json        number and digest of the samples
base_digest.json of the weights under adapters
log.jsonl        one line every few steps
checkpoint-N/    weights, optimizer, schedule, random states after step N; the newest two
curves.svg       loss, learning rates, gradient norm, speed; at the end, with matplotlib
model/ adapter/  the result
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fastvlm.errors import UsageError
from fastvlm.hf.base_digest import DIGEST_FILE, BaseDigest
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.whole_folders import name_folder, remove_folder, remove_leftovers
from fastvlm.storage.write_errors import clear_write_errors
from fastvlm.training.recipe import Recipe

KEPT_CHECKPOINTS = 2
SCRATCH = ".saving"
_FORMER_FIELDS = {"pictures_per_s": "images_per_s"}  # log lines of version 0.1
# Keys that may differ when a run is resumed, because they change neither the result nor the order of the samples.
_FREE = ("name", "workers", "save_every_steps", "save_every_minutes", "gradient_checkpointing", "tests")


class RunFolder:
    """Paths in a run's folder and operations on them.

    Args:
        folder: of the run; made by :meth:`claim`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.recipe, self.log = self.folder / "recipe.yaml", self.folder / "log.jsonl"
        self.data = self.folder / "data.json"
        self.base = self.folder / DIGEST_FILE
        self.curves = self.folder / "curves.svg"
        self.model, self.adapter = self.folder / "model", self.folder / "adapter"
        self.scratch = self.folder / SCRATCH

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=step_of)

    def last_good(self) -> Path | None:
        """The newest whole checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def claim(self, recipe: Recipe, *, is_resumed: bool, allows_changed_data: bool = False) -> Path | None:
        """Prepare the folder for this run; return the checkpoint to resume from, or None at the start.

        Removes the rest of an interrupted write. With `allows_changed_data` the key `data` may differ.

        Raises:
            UsageError: the folder holds a run and `is_resumed` is False, or it holds another run.
        """
        with clear_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            remove_leftovers(self.folder)
        last = self.last_good()
        if is_resumed:
            self._refuse_another_run(recipe, ("data", *_FREE) if allows_changed_data else _FREE)
        elif last is not None or self.model.exists() or self.adapter.exists():
            what = last or (self.model if self.model.exists() else self.adapter)
            raise UsageError(
                f"{what} exists from an earlier run. --resume continues it; another --out starts a new one."
            )
        else:
            with clear_write_errors(self.log):
                self.log.unlink(missing_ok=True)
        self._cut_log(0 if last is None else step_of(last))
        write_file(self.recipe, recipe.to_yaml())
        return last

    def _refuse_another_run(self, recipe: Recipe, free: Collection[str]) -> None:
        if not self.recipe.is_file():
            return
        before = _with_new_keys(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))
        now = recipe.to_dict()
        changed = [key for key in now if key not in free and before.get(key) != now[key]]
        if changed and self.last_good() is not None:
            key = changed[0]
            raise UsageError(
                f"The run in {self.folder} has {key}: {before.get(key)!r}, and now it is {now[key]!r}; a run can only "
                "be resumed unchanged. Give the same recipe, or another --out"
                + (", or --allow-changed-data." if key == "data" else ".")
            )

    def claim_data(self, digests: Mapping[str, Mapping[str, Any]], *, is_resumed: bool, allows_change: bool) -> None:
        """Record the digests of the samples by name ("data", "eval.data"); compare them when a run is resumed.

        Raises:
            UsageError: the run began with other samples, which is only a warning with `allows_change`; or the file of
                the digests is damaged.
        """
        if is_resumed and not self.data.is_file():
            warnings.warn(
                "The run was started by an earlier version that did not record its samples, so changes cannot be "
                "detected. They are recorded from now on.",
                stacklevel=1,
            )
        elif is_resumed:
            stored = self._stored_digests()
            for name in (name for name, digest in digests.items() if stored.get(name) != digest):
                before, now = (stored.get(name) or {}).get("num_samples", 0), digests[name]["num_samples"]
                what = f"{before} samples before, {now} now"
                text = f"The samples of {name} are not those that the run was started with ({what})"
                if not allows_change:
                    raise UsageError(
                        f"{text}. Give the same samples, another --out, or --allow-changed-data to continue with these."
                    )
                warnings.warn(f"{text}; it continues with the new ones.", stacklevel=1)
        write_file(self.data, json.dumps(digests) + "\n")

    def _stored_digests(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.data.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.data} cannot be read ({error}). Remove it to continue without it.") from error

    def claim_base(self, digest: BaseDigest, *, is_resumed: bool) -> None:
        """Record the digest of the weights under adapters, or compare it when a run is resumed.

        Raises:
            UsageError: the run began on other weights.
        """
        before = BaseDigest.read(self.base) if is_resumed else None
        if before is not None and not before.same_as(digest):
            raise UsageError(
                f"The run in {self.folder} was started from other weights than the recipe's model has now: "
                f"{self.base.name} does not match. Restore the earlier weights, or start a new run with another --out."
            )
        if before is None:
            write_file(self.base, digest.as_text())

    def _cut_log(self, step: int) -> None:
        """Remove lines of steps after `step`, which are repeated, and an incomplete last line."""
        if self.log.is_file():
            lines = [line for line in self.log.read_text(encoding="utf-8").splitlines() if _is_until(line, step)]
            write_file(self.log, "".join(line + "\n" for line in lines))

    @contextmanager
    def saving(self) -> Iterator[Path]:
        """A scratch folder for one checkpoint; removed if writing fails.

        Raises:
            StorageError: the disk is full or failed.
            UsageError: the folder cannot be written to.
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            with clear_write_errors(self.folder):
                yield self.scratch
        except BaseException:  # Ctrl-C too
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise

    def adopt(self, name: str) -> Path:
        """Rename the written checkpoint to its final name after syncing; remove the oldest ones."""
        work, target = self.scratch / name, self.folder / name
        name_folder(work, target)
        shutil.rmtree(self.scratch, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            remove_folder(old)
        return target

    def log_line(self, line: dict[str, Any]) -> None:
        """Append a line to the log. StorageError if the disk is full or failed."""
        with clear_write_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, with current field names."""
        if not self.log.is_file():
            return []
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [{_FORMER_FIELDS.get(name, name): value for name, value in line.items()} for line in lines]


def _with_new_keys(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe with the defaults of keys that did not exist when it was written."""
    try:
        return Recipe.model_validate(stored).to_dict()
    except ValueError:  # a key that was removed since; `_refuse_another_run` compares the stored values
        return stored


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
