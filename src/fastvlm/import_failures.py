"""Readable errors for imports that fail because torchvision does not match torch.

transformers imports torchvision wherever it is installed, though nothing in this package needs it. A torchvision made
for another torch then makes every import of transformers' models fail with "operator torchvision::nms does not exist".
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from fastvlm.errors import InstallationError

_MARK = "torchvision::"
_MINORS_APART = 15  # torch 2.9 needs torchvision 0.24, 2.13 with 0.28


def explain_import_failure(error: BaseException) -> InstallationError | None:
    """The error for the user if `error` comes from a torchvision that does not match torch; None for any other."""
    if not any(_MARK in str(one) for one in _chain(error)):
        return None
    torch, torchvision = _version("torch"), _version("torchvision")
    return InstallationError(
        f"torchvision {torchvision} does not match torch {torch}, so transformers' models cannot be imported. fastvlm "
        f"does not need torchvision: run pip uninstall torchvision, or install the one for this torch: {_cure(torch)}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause's cause, and so on."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a folder on the path, not installed
        return "(of unknown version)"


def _cure(torch: str) -> str:
    major, minor = [*torch.split("+", maxsplit=1)[0].split("."), "", ""][:2]
    if major != "2" or not minor.isdecimal():
        return "see https://github.com/pytorch/vision#installation"
    return f"pip install 'torchvision==0.{int(minor) + _MINORS_APART}.*'"
