"""The command `fastvlm`: its verbs, and what becomes of their errors.

Typer parses, but none of its own ways to show help, errors and tracebacks are used: help is plain text that the docs
are made from, and every error is one line (see ``failures.py``).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fastvlm import __version__
from fastvlm.cli.ask import ask
from fastvlm.cli.bench import bench
from fastvlm.cli.build_kernels import build_kernels
from fastvlm.cli.caption import caption
from fastvlm.cli.chat import chat
from fastvlm.cli.convert import convert
from fastvlm.cli.eval import evaluate
from fastvlm.cli.export import export
from fastvlm.cli.failures import report_failure
from fastvlm.cli.help_pages import HelpGroup, VerbHelp
from fastvlm.cli.info import info
from fastvlm.cli.ls import ls
from fastvlm.cli.options import Invocation
from fastvlm.cli.pull import pull
from fastvlm.cli.quantize import quantize
from fastvlm.cli.rm import rm
from fastvlm.cli.serve import serve
from fastvlm.cli.templates import templates
from fastvlm.cli.train import train
from fastvlm.cli.watch import watch

# Names of version 0.1, accepted without being listed.
_FORMER_FLAGS = {
    "--picture": "--image",
    "--pictures": "--images",
    "--pictures-in": "--images-in",
    "--picture-memo-bytes": "--pixel-cache-bytes",
    "--max-pictures": "--max-images",
    "--max-picture-bytes": "--max-image-bytes",
    "--max-picture-pixels": "--max-image-pixels",
}

app = typer.Typer(
    name="fastvlm",
    cls=HelpGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"fastvlm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fastvlm(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Ask questions about images with FastVLM.

    A small checkpoint comes with the package and is the default. It names colors and shapes, counts, and reads a word;
    for photographs take Apple's checkpoints (research only): --model apple/FastVLM-0.5B

    \b
    Examples:
      fastvlm ask street.png "How many signs are there?"
      fastvlm chat street.png
      fastvlm info mini
    """
    del version  # its callback has answered
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _verb in (
    ask,
    chat,
    caption,
    watch,
    templates,
    pull,
    ls,
    rm,
    info,
    convert,
    quantize,
    export,
    train,
    bench,
    serve,
    build_kernels,
):
    app.command(cls=VerbHelp)(_verb)
app.command("eval", cls=VerbHelp)(evaluate)  # by its name: a function called so would hide Python's own


def main(arguments: Sequence[str], commands: typer.Typer = app, name: str = "fastvlm") -> int:
    """Run one command line (without the program's `name`) and return its exit code."""
    invocation = Invocation()
    try:
        command = typer.main.get_command(commands)
        with command.make_context(name, _with_present_flags(arguments), obj=invocation) as context:
            command.invoke(context)
        sys.stdout.flush()  # here, not at exit: a reader that went away is noticed while we can still answer
    except typer.Exit as leaving:
        return leaving.exit_code
    except SystemExit as leaving:  # --install-completion and --show-completion leave so
        return int(leaving.code or 0)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the one place that turns any error into a line
        return report_failure(error, is_debug=invocation.is_debug)
    return 0


def _with_present_flags(arguments: Sequence[str]) -> list[str]:
    """`arguments` with flags of former versions under their present names; what follows ``--`` stays."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = (argument.partition("=") for argument in arguments[:end])
    return [_FORMER_FLAGS.get(flag, flag) + equals + value for flag, equals, value in flags] + list(arguments[end:])


def run(commands: typer.Typer = app, name: str = "fastvlm") -> None:
    """Entry point of the installed command `name`; also what a shell calls to complete a command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end the command
    if f"_{name.replace('-', '_').upper()}_COMPLETE" in os.environ:
        commands(prog_name=name)  # typer prints the completions and exits
    sys.exit(main(sys.argv[1:], commands, name))
