"""How ``--help`` looks: plain text, the same with every release of typer, so that the reference is made from it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

from fastvlm.cli.added_verbs import find_added_verb
from fastvlm.cli.other_verbs import OTHER_VERBS
from fastvlm.errors import UsageError


class VerbHelp(TyperCommand):
    """A verb's page: usage, what it does, arguments, options in their groups."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """``Usage: fastvlm ask [OPTIONS] [IMAGE]... QUESTION``."""
        words = [_usage_word(parameter) for parameter in self.params if isinstance(parameter, TyperArgument)]
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *words]))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The whole page."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            is_argument, name, text = _row(parameter)
            group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
            groups.setdefault(group, []).append((name, text))
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class HelpGroup(TyperGroup):
    """The page of `fastvlm` itself."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what it is, the verbs in the order of their use, options."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] VERB ...")
        self.format_help_text(ctx, formatter)
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.get_short_help_str(100)) for name, verb in self.commands.items()])
        with formatter.section("Options"):
            formatter.write_dl([(name, text) for _, name, text in map(_row, self.get_params(ctx))])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb of this package, or one that another distribution adds."""
        return super().get_command(ctx, cmd_name) or find_added_verb(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that `args` begin with. Raises UsageError for another program's verb: it names ours."""
        instead = OTHER_VERBS.get(args[0])
        if instead is not None and self.get_command(ctx, args[0]) is None:
            raise UsageError(f"There is no fastvlm {args[0]}. {instead} All verbs: fastvlm --help")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # typer's signature
        """The verbs in the order of their use."""
        return list(self.commands)


def _usage_word(argument: Any) -> str:
    name: str = argument.metavar
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> tuple[bool, str, str]:
    """Whether it is an argument, what to type, and what it does."""
    if isinstance(parameter, TyperArgument):
        return True, _usage_word(parameter), parameter.help or ""
    flags = ", ".join(sorted(parameter.opts, key=len))
    name = flags if parameter.is_flag else f"{flags} {parameter.metavar}"
    has_default = parameter.show_default and parameter.default is not None and not parameter.is_flag
    default = f"  [default: {getattr(parameter.default, 'value', parameter.default)}]" if has_default else ""
    return False, name, f"{parameter.help}{default}"
