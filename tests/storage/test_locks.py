"""One process at a time, whatever ended the one before it."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from fastvlm.errors import UsageError
from fastvlm.storage import locks
from fastvlm.storage.locks import LOCK_NAME, exclusive_folder, exclusive_lock

HOLD = """
import sys
from pathlib import Path
from fastvlm.storage.locks import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder):
    """Another process that has the folder, until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path):
    with holder(tmp_path / "run") as other:
        with pytest.raises(UsageError) as raised, exclusive_folder(tmp_path / "run"):
            raise AssertionError("two at once")
        assert f"run is being written by process {other.pid}. Wait until it has ended" in str(raised.value)
        other.communicate("")
        with exclusive_folder(tmp_path / "run"):
            pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_owner_leaves_a_file_that_stops_nobody(tmp_path):
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    assert (tmp_path / LOCK_NAME).exists()
    with exclusive_folder(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text().startswith(f"{os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(exclusive_folder(tmp_path))
        reads, writes = os.pipe()
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:  # lives on, as a process that reads samples does after its parent was killed
            os.close(writes)
            os.write(begins, b"x")
            os.read(reads, 1)
            os._exit(0)
        assert os.read(begun, 1) == b"x"
        (descriptor,) = locks._held
        os.close(descriptor)  # what the system does with a process that is killed
        locks._held.clear()
        with exclusive_folder(tmp_path):
            pass
        for end in (writes, reads, begun, begins):
            os.close(end)
        assert os.waitpid(child, 0)[1] == 0


def test_the_lock_moves_on_where_its_file_was_removed_in_between(tmp_path, monkeypatch):
    """Between opening and locking, the owner ends and removes the file: what was locked is nobody's."""
    lock = tmp_path / "lock"
    plain, calls = locks.lock_now, []

    def late(descriptor, target):
        calls.append(descriptor)
        if len(calls) == 1:
            lock.unlink()
        return plain(descriptor, target)

    monkeypatch.setattr(locks, "lock_now", late)
    with exclusive_lock(lock, tmp_path):
        assert len(calls) == 2 and lock.exists()
        with pytest.raises(UsageError, match="this process"), exclusive_lock(lock, tmp_path):
            pass


def test_another_users_leftover_is_locked_without_writing_to_it(tmp_path, monkeypatch):
    (tmp_path / LOCK_NAME).write_text("1 elsewhere\n")
    plain = os.open

    def guarded(path, flags, *mode):
        if str(path).endswith(LOCK_NAME) and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, flags, *mode)

    monkeypatch.setattr(os, "open", guarded)
    with exclusive_folder(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == "1 elsewhere\n"


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="symbolic links"), exclusive_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_gone_on_with(code, tmp_path, monkeypatch):
    def refuses(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks, "flock", refuses)
    with pytest.warns(UserWarning, match="cannot be locked.*no other run"), exclusive_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_flock_is_told_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "CAN_LOCK", False)
    with pytest.warns(UserWarning, match="no flock"), exclusive_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_and_a_read_only_disk_are_told(tmp_path, read_only_disk):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file cannot be written: .*exists"), exclusive_folder(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="read-only file system"), exclusive_folder(read_only_disk / "run"):
        pass
    with pytest.raises(UsageError, match="read-only file system"), exclusive_folder(read_only_disk):
        pass
