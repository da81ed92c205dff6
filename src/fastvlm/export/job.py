"""What each format of an export gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastvlm.export.checks import Answer, Check, Sample, check_variant
from fastvlm.export.memory import too_large
from fastvlm.export.source import ExportSource


@dataclass(frozen=True)
class ExportJob:
    """One export into one folder.

    Attributes:
        source: is only read.
        work: the folder to write into.
        variants: dtypes to write, in the format's order.
        asked, expected: samples and the source's answers to them; none if `not_checked`.
        step: called after each piece of work.
        has_page: True to add the web page.
        page_library: a node_modules folder that the page's library is copied from; None for a CDN.
        context: tokens of a cache of fixed length; None for the format's own.
        not_checked: why files are not compared with the source; empty if they are.
    """

    source: ExportSource
    work: Path
    variants: tuple[str, ...]
    asked: Sequence[Sample]
    expected: Sequence[Answer]
    step: Callable[[], None]
    has_page: bool = False
    page_library: Path | None = None
    context: int | None = None
    not_checked: str = ""

    def check(self, variant: str, ask: Callable[[Sample], Answer]) -> Check:
        """Compare a variant's answers with the source's; see :func:`check_variant`."""
        return check_variant(variant, ask, self.asked, self.expected)

    def check_all(
        self, running_bytes: Mapping[str, int], check: Callable[[str], Check]
    ) -> tuple[tuple[Check, ...], str]:
        """Check each variant that can be run here, and take a step.

        Args:
            running_bytes: variant -> memory that its files take while they run, about.
            check: runs the files of a variant, which is :meth:`check` in the end.

        Returns:
            The checks, and why other files were not run; empty if all were.
        """
        checks, reasons = [], []
        for variant in self.variants:
            too_much = too_large(running_bytes[variant])
            reason = self.not_checked or (f"running {variant} {too_much}" if too_much else "")
            if reason:
                reasons.append(reason)
            else:
                checks.append(check(variant))
            self.step()
        return tuple(checks), "; ".join(dict.fromkeys(reasons))


@dataclass(frozen=True)
class Written:
    """What a format wrote.

    Attributes:
        defaults: part of the model -> variant that is taken if none is asked for.
        checks: of the files that were run here.
        not_run: why files were not run here; empty if all were.
        readme: text of the folder's README.
        warnings: what a user must know.
    """

    defaults: Mapping[str, str]
    checks: tuple[Check, ...]
    readme: str
    not_run: str = ""
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Format:
    """A kind of export.

    Attributes:
        variants: dtypes that it has.
        need: imports what writes the files; returns versions, raises MissingExtraError.
        write: writes the files.
        num_steps: pieces of work for these variants.
        not_checked: why files of this format cannot be run here; empty if they can.
        is_single: True if a folder holds one variant.
        default: variants that are written if none is named; empty for all.
        has_context: True if the files fix the length of the cache.
    """

    variants: tuple[str, ...]
    need: Callable[[], dict[str, str]]
    write: Callable[[ExportJob], Written]
    num_steps: Callable[[tuple[str, ...]], int]
    not_checked: str = ""
    is_single: bool = False
    default: tuple[str, ...] = ()
    has_context: bool = False
