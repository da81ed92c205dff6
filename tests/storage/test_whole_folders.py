"""A folder is the old one, the new one or not there; leftovers go, and only ours."""

import shutil

import pytest

from fastvlm.errors import StorageError, UsageError
from fastvlm.storage import whole_folders
from fastvlm.storage.whole_folders import name_folder, remove_folder, remove_leftovers, whole_folder


def write(target, text, **options):
    with whole_folder(target, **options) as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_text(text)


def fail_in(work, error):
    (work / "a").write_text("half")
    raise error


def content(target):
    return (target / "sub" / "a").read_text()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_whole_or_not_at_all(tmp_path):
    write(tmp_path / "new", "1")
    assert content(tmp_path / "new") == "1" and names(tmp_path) == ["new"]
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), whole_folder(tmp_path / "other") as work:
            fail_in(work, error)
    assert names(tmp_path) == ["new"]


def test_what_is_there_is_replaced_only_if_asked(tmp_path):
    write(tmp_path / "new", "1")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write(tmp_path / "new", "2")
    assert content(tmp_path / "new") == "1"
    write(tmp_path / "new", "2", replaces=True)
    assert content(tmp_path / "new") == "2" and names(tmp_path) == ["new"]


def test_two_at_once_are_told(tmp_path):
    with whole_folder(tmp_path / "new") as work:
        with pytest.raises(UsageError, match="is being written by this process"):
            write(tmp_path / "new", "2")
        assert work.is_dir()
    assert names(tmp_path) == ["new"]


def test_leftovers_of_a_killed_run_go_and_nothing_else(tmp_path):
    for name in (".new.part", ".new.gone", ".new.settings", ".newer.part", ".new.lock.d"):
        (tmp_path / name).mkdir()
    write(tmp_path / "new", "1")
    assert names(tmp_path) == [".new.lock.d", ".new.settings", ".newer.part", "new"]


def test_a_run_that_was_killed_while_it_replaced_gives_the_old_one_back(tmp_path):
    write(tmp_path / ".new.old", "old")
    with pytest.raises(ValueError), whole_folder(tmp_path / "new", replaces=True):
        raise ValueError
    assert content(tmp_path / "new") == "old" and names(tmp_path) == ["new"]
    write(tmp_path / ".new.old", "older")
    write(tmp_path / "new", "newer", replaces=True)
    assert content(tmp_path / "new") == "newer" and names(tmp_path) == ["new"]


def test_removing_takes_the_name_first(tmp_path, monkeypatch):
    write(tmp_path / "new", "1")
    seen = []
    plain = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (seen.append(path), plain(path, **options)))
    remove_folder(tmp_path / "new")
    assert [path.name for path in seen] == [".new.gone"] and names(tmp_path) == []


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Every file and folder of the tree is synced, then renamed, then the parent is synced."""
    steps = []
    sync_file, sync_folder = whole_folders._sync_file, whole_folders.sync_folder
    monkeypatch.setattr(whole_folders, "_sync_file", lambda p: (steps.append(p.name), sync_file(p)))
    monkeypatch.setattr(
        whole_folders, "sync_folder", lambda p: (steps.append((p.name, (tmp_path / "new").exists())), sync_folder(p))
    )
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "sub" / "a").write_text("1")
    (work / "b").write_text("2")
    name_folder(work, tmp_path / "new")
    assert steps == ["a", ("sub", False), "b", ("work", False), (tmp_path.name, True)]


def test_leftovers_in_a_run_folder(tmp_path):
    for name in (".a.part", "keep.part", ".b.gone", ".hidden"):
        (tmp_path / name).write_text("")
    write(tmp_path / ".model.old", "old")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "keep.part", "model"]


def test_a_full_and_a_read_only_disk(small_disk):
    with pytest.raises(StorageError, match="cannot be written: No space"), whole_folder(small_disk / "new") as work:
        (work / "a").write_bytes(bytes(2 << 20))
    assert names(small_disk) == []


def test_a_parent_that_takes_nothing(read_only_disk):
    with pytest.raises(UsageError, match="read-only file system"):
        write(read_only_disk / "new", "1")


def test_a_system_without_flock_does_not_guess(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_folders, "CAN_LOCK", False)
    (tmp_path / ".new.part").mkdir()
    with pytest.raises(UsageError, match="If it was killed, remove"):
        write(tmp_path / "new", "1")
    assert names(tmp_path) == [".new.part"]
