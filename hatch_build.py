"""Installing compiles the CPU kernels (``fastvlm.backends.native.build``), where there is a compiler for them.

A wheel made so is for this system and kind of CPU (``library.PLATFORMS``); it works on every CPU of the kind, because
it holds the kernels of all levels. Without a compiler, or elsewhere, the wheel is pure Python, and torch's kernels do
the work.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

sys.path.insert(0, str(Path(__file__).parent / "src"))

from fastvlm.backends.native.build import compile_library
from fastvlm.backends.native.library import PLATFORMS, installed_path
from fastvlm.errors import BuildError


def platform_tag() -> str:
    """The last part of the wheel's name: linux_x86_64, linux_aarch64, macosx_15_0_arm64."""
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Puts the library beside its module: into the tree for an editable install, into the wheel otherwise."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; what cannot be compiled is told, and is no error."""
        if self.target_name != "wheel" or (platform.system(), platform.machine()) not in PLATFORMS:
            return
        is_editable = version == "editable"
        path = installed_path() if is_editable else Path(tempfile.mkdtemp()) / installed_path().name
        try:
            compile_library(path, is_tried=False)
        except BuildError as error:
            self.app.display_warning(f"The CPU kernels are left out. {error}")
            return
        for older in set(path.parent.glob("kernels-*.so")) - {path}:
            older.unlink()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"
        if not is_editable:
            build_data["force_include"][str(path)] = f"fastvlm/backends/native/built/{path.name}"
