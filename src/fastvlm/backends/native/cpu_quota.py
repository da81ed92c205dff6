"""The CPU time that Linux control groups allow this process, as containers limit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """Cores' worth of CPU time that this process may use; None without a limit, and outside Linux.

    Args:
        groups: the process's control groups, as in ``/proc/self/cgroup``.
        mount: where versions 1 and 2 of the control groups are mounted.
    """
    quotas = [quota for folder in _folders(groups, mount) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _folders(groups: Path, mount: Path) -> Iterator[Path]:
    """The folders of the process's groups and of those above them, whose limits hold too.

    A container may see its own group at the mount while the names are the host's; names that are not there are skipped.
    """
    for line in _text(groups).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0":
            root = mount
        elif "cpu" in controllers.split(","):
            root = mount / "cpu" if (mount / "cpu").is_dir() else mount / controllers
        else:
            continue
        folder = root / name.strip("/")
        yield folder
        yield from (above for above in folder.parents if above == root or root in above.parents)


def _quota(folder: Path) -> float | None:
    """The limit of one group: version 2 has quota and period in one file, version 1 in two."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or not there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
