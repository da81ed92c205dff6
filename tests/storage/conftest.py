"""Disks that are full or take nothing."""

import pytest
from mounting import mounted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path):
    """A file system that takes nothing."""
    with mounted(tmp_path / "disk", "size=1m,ro") as folder:
        yield folder
