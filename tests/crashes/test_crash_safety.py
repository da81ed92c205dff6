"""Every verb that writes, with an error or a sudden end at each of its changes to the disk.

In the manner of SQLite's crash tests: the changes (creating, writing, syncing, renaming, removing) are counted, and the
command runs once for each of them with a fault there. Afterwards what it writes is whole (the old or the new) or not
there, what it reads is as it was, an error was told in one line, and the same command again succeeds and leaves nothing
behind. A point for each verb and fault is tried in each run of the tests, all of them with ``-m exhaustive``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from faulty import ALL_KINDS, Done, Faulty
from mounting import mounted
from safetensors.torch import load_file

from fastvlm.storage.locks import LOCK_NAME, exclusive_folder, exclusive_lock
from fastvlm.training.run.run_folder import KEPT_CHECKPOINTS


def digests(folder: Path) -> dict[str, str]:
    """Every file under `folder`, hidden ones too."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


@dataclass(frozen=True)
class Verb:
    """A command line, and what must be true of its folder.

    Args:
        arguments: of the command, from (sources, target).
        check: raises where something half-written has a good name, from (target, the files of a run without faults).
        files: of those which are compared after the last run; all if None.
        again: added when the command is run again.
        is_kept: the target may be there, unfinished, and the same command goes on with it.
    """

    arguments: Callable[[Path, Path], list[str]]
    check: Callable[[Path, dict[str, str]], None]
    compared: Callable[[str], bool] = lambda name: True
    again: tuple[str, ...] = ()
    is_kept: bool = False


def is_whole(target: Path, reference: dict[str, str]) -> None:
    """Nothing, or all of it."""
    assert not target.exists() or digests(target) == reference


def has_whole_shards(target: Path, reference: dict[str, str]) -> None:
    found = digests(target) if target.exists() else {}
    for name, digest in found.items():
        assert is_hidden(name) or reference[name] == digest, name
    for file in target.glob("*.tar"):
        with tarfile.open(file) as tar:
            assert len(tar.getmembers()) == 4


def has_whole_checkpoints(target: Path, reference: dict[str, str]) -> None:
    """Whatever has the name of a checkpoint or of the model has all its files, which can be read."""
    named = [*target.glob("checkpoint-*"), *target.glob("model")]
    expected = {Path(name).parts[0]: set() for name in reference} | {"checkpoint-1": set()}
    for name in reference:
        expected[Path(name).parts[0]].add(str(Path(*Path(name).parts[1:])))
    expected["checkpoint-1"] = expected["checkpoint-2"]
    for folder in named:
        found = digests(folder)
        assert found.keys() == expected[folder.name]
        assert load_file(folder / "model.safetensors")
        for name, digest in found.items():
            whole = reference.get(f"{folder.name}/{name}")
            assert whole in (None, digest) or not name.endswith("model.safetensors"), (folder, name)
    assert len(list(target.glob("checkpoint-*"))) <= KEPT_CHECKPOINTS + 1


def has_whole_predictions(target: Path, reference: dict[str, str]) -> None:
    for name in ("run.json", "summary.json"):
        if (target / name).exists():
            json.loads((target / name).read_text())
    if (target / "worst.html").exists():
        assert (target / "worst.html").read_text().rstrip().endswith("</html>")
    if (target / "predictions.jsonl").exists():
        for line in (target / "predictions.jsonl").read_text().splitlines(keepends=True):
            assert not line.endswith("\n") or json.loads(line)["reply"]


def has_whole_parts(target: Path, reference: dict[str, str]) -> None:
    for name in ("run.json", "inputs.json"):
        if (target / name).exists():
            json.loads((target / name).read_text())
    for part in target.glob("*.jsonl"):
        lines = [json.loads(line) for line in part.read_text().splitlines()]
        assert [line["error"] for line in lines] == [None] * 2


VERBS = {
    "convert": Verb(
        lambda sources, out: ["convert", str(sources / "small"), str(out), "--max-shard-size", "300KB"], is_whole
    ),
    "quantize": Verb(
        lambda sources, out: ["quantize", str(sources / "small"), str(out), "--encoder-bits", "8"], is_whole
    ),
    "demo-data": Verb(
        lambda _, out: [
            *("demo-data", str(out), "--images", "4", "--shards-of", "2", "--workers", "1", "--mix", "shapes=1")
        ],
        has_whole_shards,
        is_kept=True,
    ),
    "eval": Verb(
        lambda sources, out: [
            *("eval", "--task", "plain", "--data", str(sources / "data" / "questions.jsonl"), "--out", str(out)),
            *("-m", str(sources / "parrot"), "--device", "cpu", "--slots", "1", "--no-blind"),
        ],
        has_whole_predictions,
        compared=lambda name: name in ("run.json", "predictions.jsonl", "worst.html"),
        is_kept=True,
    ),
    "caption": Verb(
        lambda sources, out: [
            *("caption", *(str(sources / "data" / f"{number}.png") for number in range(4)), "--out", str(out)),
            *("-m", str(sources / "parrot"), "--device", "cpu", "--slots", "1", "-p", "P", "--rows-per-part", "2"),
        ],
        has_whole_parts,
        compared=lambda name: name in ("run.json", "inputs.json"),
        is_kept=True,
    ),
    "train": Verb(
        lambda sources, out: ["train", str(sources / "recipe.yaml"), "--out", str(out)],
        has_whole_checkpoints,
        compared=lambda name: name.startswith("model/") and name.endswith((".safetensors", ".json")),
        again=("--resume",),
        is_kept=True,
    ),
}
if find_spec("fastvlm_recipes") is None:
    del VERBS["demo-data"]
FAULTS = {
    "killed": {"how": "kill"},
    "one error": {"how": "once", "error": errno.EIO},
    "disk full": {"how": "from", "error": errno.ENOSPC, "kinds": ("create", "write")},
    "read-only": {"how": "from", "error": errno.EROFS},
}


@pytest.fixture(scope="module")
def faulty(library, sources, tmp_path_factory):
    """The process, in which each verb has run once."""
    warm = tmp_path_factory.mktemp("warm")
    fonts = {"FASTVLM_MINI_FONTS": str(sources / "fonts.json"), "FASTVLM_FASHION_MNIST": str(warm / "none")}
    process = Faulty(library, [verb.arguments(sources, warm / name) for name, verb in VERBS.items()], **fonts)
    yield process
    process.end()


@dataclass(frozen=True)
class Straight:
    """A run without faults: its files, and a line for each change."""

    files: dict[str, str]
    changes: list[str]
    num_bytes: int


@pytest.fixture(scope="module")
def straight(faulty, sources, tmp_path_factory):
    """Verb -> its run without faults."""
    runs = {}
    for name, verb in VERBS.items():
        folder = tmp_path_factory.mktemp("straight") / "run"
        folder.mkdir()
        log = folder.parent / "changes"
        done = faulty.run(verb.arguments(sources, folder / "out"), folder, log=log)
        assert done.status == 0, done
        assert [path.name for path in folder.iterdir()] == ["out"]
        runs[name] = Straight(digests(folder / "out"), log.read_text().splitlines(), size_of(folder))
        assert not any(is_hidden(file) for file in runs[name].files)
    return runs


def num_changes(changes: list[str], kinds: tuple[str, ...]) -> int:
    kind_of = {"open": "create", "mkdir": "create", "write": "write", "ftruncate": "write", "ftruncate64": "write"}
    kind_of |= {"fsync": "sync", "fdatasync": "sync", "rename": "name"}
    kind_of |= {"unlink": "remove", "unlinkat": "remove", "rmdir": "remove"}
    return sum(kind_of[change.split()[0]] in kinds for change in changes)


def one_of(count: int, fault_name: str) -> int:
    """One of the numbers 1 to `count`: another part of the way for every fault."""
    return 1 + round((list(FAULTS).index(fault_name) + 0.5) * (count - 1) / len(FAULTS))


def check_point(verb: Verb, faulty: Faulty, sources: Path, whole: Straight, folder: Path, at: int, fault: dict) -> None:
    """One command with one fault, and the same command again."""
    folder.mkdir()
    out = folder / "out"
    done = faulty.run(verb.arguments(sources, out), folder, at=at, **fault)
    check_said(done, fault)
    verb.check(out, whole.files)
    if done.status == 0:  # an error of tidying up, at most: the next run does it
        assert_complete(verb, out, whole, with_hidden=False)
    if verb.is_kept or not out.exists():
        again = faulty.run([*verb.arguments(sources, out), *verb.again], folder)
        assert again.status == 0, again
        assert [path.name for path in folder.iterdir()] == ["out"]
        assert not any(is_hidden(name) for name in digests(out))
    assert_complete(verb, out, whole)
    shutil.rmtree(folder)


def check_said(done: Done, fault: dict) -> None:
    if fault["how"] == "kill":
        assert done.status == -signal.SIGKILL
        return
    assert done.status in (0, 1, 2), done
    assert "Traceback" not in done.err, done.err
    if done.status:
        (line,) = [line for line in done.err.splitlines() if line.startswith("fastvlm: error: ")]
        assert "--debug" not in line and "cannot be written" in line, line


def assert_complete(verb: Verb, out: Path, whole: Straight, *, with_hidden: bool = True) -> None:
    found, expected = (
        {name: digest for name, digest in files.items() if verb.compared(name) and (with_hidden or not is_hidden(name))}
        for files in (digests(out), whole.files)
    )
    assert found == expected


def check_points(name: str, fault_name: str, faulty, sources, straight, tmp_path, *, is_exhaustive: bool) -> None:
    verb, fault, whole = VERBS[name], FAULTS[fault_name], straight[name]
    before = digests(sources)
    count = num_changes(whole.changes, fault.get("kinds", ALL_KINDS))
    for at in range(1, count + 1) if is_exhaustive else [one_of(count, fault_name)]:
        print(f"{name}, {fault_name} at change {at} of {count}")  # shown where the test fails
        check_point(verb, faulty, sources, whole, tmp_path / f"{at}", at, fault)
    assert digests(sources) == before


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_half_written_wherever_it_fails(verb, fault, faulty, sources, straight, tmp_path):
    check_points(verb, fault, faulty, sources, straight, tmp_path, is_exhaustive=False)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_half_written_at_any_change(verb, fault, faulty, sources, straight, tmp_path):
    check_points(verb, fault, faulty, sources, straight, tmp_path, is_exhaustive=True)


@pytest.mark.parametrize("verb", VERBS)
def test_what_gets_a_name_is_on_the_disk(verb, straight):
    check_order(straight[verb].changes, [f"out/{name}" for name in straight[verb].files])


def check_order(changes: list[str], files: list[str]) -> None:
    """A file is synced after its last write, only then it or its folder is renamed, and then the parent is synced."""
    unsynced: set[str] = set()
    synced: set[str] = set()
    named: list[str] = []
    for number, change in enumerate(changes):
        what, path = change.split(" ", 1)
        if what in ("write", "ftruncate", "ftruncate64"):
            unsynced.add(path)
            synced.discard(path)
        elif what in ("fsync", "fdatasync"):
            unsynced.discard(path)
            synced.add(path)
        elif what == "rename" and not is_hidden(path.split(" -> ")[1]):  # what is hidden has no name yet
            source, target = path.split(" -> ")
            # safetensors' own temporary files get their names by a system call that is not seen here.
            open_ended = {f for f in unsynced if Path(f).is_relative_to(source) and ".tmp" not in f}
            assert not open_ended, change
            inside = [file for file in files if Path(file).is_relative_to(target)]
            assert {source + file.removeprefix(target) for file in inside} <= synced, change
            later = [c.removeprefix("fsync ").rstrip("/") for c in changes[number:] if c.startswith("fsync")]
            assert str(Path(target).parent) in [place or "." for place in later], change
            named.append(target)
    assert named


@pytest.mark.parametrize("verb", VERBS)
def test_two_at_once_are_told_who_is_first(verb, faulty, sources, tmp_path):
    out = tmp_path / "run" / "out"
    out.parent.mkdir()
    is_folder_locked = VERBS[verb].is_kept
    with exclusive_folder(out) if is_folder_locked else exclusive_lock(out.with_name(".out.lock"), out):
        done = faulty.run(VERBS[verb].arguments(sources, out), out.parent)
        assert done.status == 2 and f"is being written by process {os.getpid()}." in done.err, done
        assert not out.exists() or [path.name for path in out.iterdir()] == [LOCK_NAME]
    done = faulty.run(VERBS[verb].arguments(sources, out), out.parent)
    assert done.status == 0, done


@pytest.mark.parametrize("verb", VERBS)
def test_a_real_full_disk(verb, faulty, sources, straight, tmp_path):
    """Half of the room that the result takes."""
    with mounted(tmp_path / "disk", f"size={max(straight[verb].num_bytes // 2, 4096)}") as disk:
        done = faulty.run(VERBS[verb].arguments(sources, disk / "out"), disk)
        assert done.status == 1, done
        check_said(done, {"how": "full"})
        assert "No space left on device" in done.err
        VERBS[verb].check(disk / "out", straight[verb].files)
        assert [path.name for path in disk.iterdir() if path.name != "out"] == []
        assert not any(is_hidden(name) for name in digests(disk))


@pytest.mark.parametrize("verb", VERBS)
def test_a_real_read_only_disk(verb, faulty, sources, straight, tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        done = faulty.run(VERBS[verb].arguments(sources, disk / "out"), disk)
        assert done.status == 2, done
        check_said(done, {"how": "read-only"})
        assert list(disk.iterdir()) == []
