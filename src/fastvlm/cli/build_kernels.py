"""`fastvlm build-kernels`: CPU kernels of our own, compiled once on this machine."""

from __future__ import annotations

import typer

from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption
from fastvlm.cli.terminal import Notes, print_json, quiet_libraries

__all__ = ["build_kernels"]


def build_kernels(is_json: JsonOption = False, is_quiet: QuietOption = False, is_debug: DebugOption = False) -> None:
    """Compile kernels that make pictures and replies faster on this CPU; once is enough.

    Needs Linux, a CPU with AMX, and g++ or clang++ 10 or later (CXX names another). Every engine of this user then
    takes the encoder's GELU and depthwise convolutions in bfloat16 from there, and the whole decoder in bfloat16, 8
    and 4 bits. It prints the path: a file in the cache directory (XDG_CACHE_HOME). Without it, or with
    FASTVLM_NATIVE_KERNELS=0, torch's kernels do the same work. Build again after an update of fastvlm, or on another
    CPU: what does not fit is not used.

    \b
    Examples:
      fastvlm build-kernels
      CXX=clang++ fastvlm build-kernels --json | jq -r .path
    """
    notes = Notes(is_quiet=is_quiet)
    with notes.waiting("Starting"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.engine.native_build import build
    with leaving_cleanly(), notes.waiting("Compiling"):
        built = build()
    if is_json:
        print_json({"path": str(built.path), "compiler": built.compiler, "version": built.version})
        return
    notes.say(f"made by {built.compiler}: {built.version}")
    typer.echo(str(built.path))
