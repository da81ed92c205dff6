"""A file is the old one or the new one, and every reason why it cannot be written is told."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from fastvlm.errors import StorageError, UsageError
from fastvlm.storage import locks, whole_files
from fastvlm.storage.whole_files import part_of, whole_file, write_file
from fastvlm.storage.write_errors import clear_write_errors, reason_of, write_error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_and(file, then, **options):
    with whole_file(file, **options) as stream:
        stream.write(b"new")
        then()


def raising(error):
    def fail():
        raise error

    return fail


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    write_file(tmp_path / "a", "Grüße\n")
    assert (tmp_path / "a").read_bytes() == "Grüße\n".encode()
    write_file(tmp_path / "a", b"\0")
    assert (tmp_path / "a").read_bytes() == b"\0" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_fails_in_between_leaves_the_old_one(error, tmp_path):
    write_file(tmp_path / "a", "old")
    with pytest.raises(error):
        write_and(tmp_path / "a", raising(error))
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_one(small_disk):
    write_file(small_disk / "a", "old")
    with pytest.raises(StorageError, match=r"a cannot be written: No space left on device\. Free some space"):
        write_file(small_disk / "a", bytes(2 << 20))
    with pytest.raises(StorageError, match="No space left"), whole_file(small_disk / "b") as stream:
        stream.writelines([bytes(10_000)] * 200)
    assert (small_disk / "a").read_text() == "old" and names(small_disk) == ["a"]


def test_a_read_only_disk(read_only_disk):
    with pytest.raises(UsageError, match="read-only file system"):
        write_file(read_only_disk / "a", "x")


def test_a_place_that_no_file_can_have(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, reason in {
        "folder": "A folder has that name",
        "none/a": "Make its folder first",
        "file/a": "A part of that path is a file",
        "a" * 260: "Name a shorter one",
        "loop": "symbolic links",
    }.items():
        with pytest.raises(UsageError, match=reason):
            write_file(tmp_path / place, "x")
    assert names(tmp_path) == ["file", "folder", "loop"]


def test_a_file_that_may_not_be_written_is_left(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everything
    with pytest.raises(UsageError, match="Change its permissions"):
        write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_mode_and_link_stay(tmp_path):
    write_file(tmp_path / "a", "old")
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to("a")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_file(tmp_path / "pipe", "through")
    reader.join()
    assert read == ["through"] and names(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_new_file_is_never_another_ones(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "mine", is_new=True)
    with pytest.raises(UsageError, match="File exists"):
        write_file(tmp_path / "a", "yours", is_new=True)
    with pytest.raises(UsageError, match="File exists"):  # another process makes it just now
        write_and(tmp_path / "b", lambda: (tmp_path / "b").write_text("mine"), is_new=True)

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_file(tmp_path / "c", "mine", is_new=True)
    with pytest.raises(UsageError, match="File exists"):
        write_and(tmp_path / "d", lambda: (tmp_path / "d").write_text("mine"), is_new=True)
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == dict.fromkeys("abcd", "mine")


def test_what_a_killed_process_left_is_taken_up(tmp_path):
    part_of(tmp_path / "a").write_text("a longer half of something")
    write_file(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole" and names(tmp_path) == ["a"]


WRITER = """
import sys
from pathlib import Path
from fastvlm.storage.whole_files import write_file
for _ in range(40):
    write_file(Path(sys.argv[1]), sys.argv[2] * 20_000)
"""


def test_processes_that_write_the_same_file_take_turns(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a"), letter]) for letter in "xyz"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a").exists():
            content = (tmp_path / "a").read_text()
            assert content == content[0] * 20_000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["a"]


def test_a_system_without_flock_closes_before_it_renames(tmp_path, monkeypatch):
    for module in (locks, whole_files):
        monkeypatch.setattr(module, "CAN_LOCK", False)
    write_file(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        write_and(tmp_path / "a", raising(KeyboardInterrupt))
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "x"), StorageError, "No space left on device. Free some space"),
        (OSError(errno.EIO, "x"), StorageError, "Input/output error. The disk failed"),
        (OSError(errno.EFBIG, "x"), StorageError, "File too large"),
        (OSError(errno.EROFS, "x"), UsageError, "read-only"),
        (OSError(errno.EMFILE, "x"), UsageError, "Too many open files"),
        (Exception("I/O error: No space left on device (os error 28)"), StorageError, "No space left on device. Free"),
        (
            RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"),
            StorageError,
            "failed writing",
        ),
    ],
)
def test_every_librarys_error_is_told_alike(error, kind, words, tmp_path):
    with pytest.raises(kind) as raised, clear_write_errors(tmp_path / "a"):
        raise error
    assert str(tmp_path / "a") in str(raised.value) and words in str(raised.value)
    assert str(write_error(tmp_path / "a", error)) == str(raised.value)


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shape mismatch"), StorageError("said"), KeyError(1)])
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error)) as raised, clear_write_errors(tmp_path / "a"):
        raise error
    assert raised.value is error
    assert reason_of(error) is None


def test_a_file_that_could_not_be_read_is_not_said_to_be_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError), clear_write_errors(tmp_path / "target"):
        (tmp_path / "source").read_text()
    with pytest.raises(FileNotFoundError), clear_write_errors(tmp_path / "sub" / "target"):
        (tmp_path / "source").read_text()
    with pytest.raises(UsageError), clear_write_errors(tmp_path / "target"):
        (tmp_path / ".target.part" / "a").read_text()
    copying = OSError(errno.ENOSPC, "x", str(tmp_path / "source"), None, str(tmp_path / ".target.part" / "a"))
    with pytest.raises(StorageError), clear_write_errors(tmp_path / "target"):
        raise copying
