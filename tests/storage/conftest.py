"""A disk of one megabyte, where this user may mount one."""

import os
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    yield from mounted(tmp_path / "disk", "size=1m")


@pytest.fixture
def read_only_disk(tmp_path):
    """A file system that takes nothing."""
    yield from mounted(tmp_path / "disk", "size=1m,ro")


def mounted(folder, options):
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if (
        not hasattr(os, "geteuid")
        or os.geteuid()
        or subprocess.run(mounting, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
