"""Packages of the extras that exports need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

from fastvlm.errors import MissingExtraError


def versions_of(packages: Sequence[str], extra: str, purpose: str) -> dict[str, str]:
    """Versions of packages, which are not imported.

    Args:
        packages: names of modules, which are also names of distributions but for underscores.
        extra: brings them.
        purpose: what needs them, for the error.

    Raises:
        MissingExtraError: one is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, purpose)
    return {package: importlib.metadata.version(package.replace("_", "-")) for package in packages}
