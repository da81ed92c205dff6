"""`fastvlm build-kernels`: compile the CPU kernels if the installation did not."""

from __future__ import annotations

import typer

from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries


def build_kernels(is_json: JsonOption = False, is_quiet: QuietOption = False, is_debug: DebugOption = False) -> None:
    """Compile the CPU kernels, if the installation found no compiler.

    Installing compiles them if there is g++ 11 or later or clang++ 12 (CXX names another); then nothing is left to do.
    They are for Linux on x86-64 with AVX2 or more and on 64-bit Arm, and for macOS on Apple's CPUs. The path that is
    printed is a file in the cache directory (XDG_CACHE_HOME), for this user alone. Without the kernels, or with
    FASTVLM_KERNELS=torch, torch's do the same work, slower.

    \b
    Examples:
      fastvlm build-kernels
      CXX=clang++ fastvlm build-kernels --json | jq -r .path
    """
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.backends.native.build import build
    with leaving_cleanly(), notes.waiting("Compiling"):
        built = build()
    if is_json:
        print_json({"path": str(built.path), "compiler": built.compiler, "version": built.version})
        return
    notes.say(f"made by {built.compiler}: {built.version}")
    typer.echo(str(built.path))
