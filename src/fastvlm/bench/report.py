"""A result as a report: plain text for the terminal, Markdown for a file."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, NamedTuple

from fastvlm.bench.limits import BANDWIDTH
from fastvlm.bench.machine import hardware_slug
from fastvlm.bench.plan import MEASURES
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.write_errors import clear_write_errors

_GAP = "  "
_READING = (
    "Medians with quartiles and range over the rounds; ratios above 1 mean that fastvlm is better. A limit is what "
    "this machine allows if everything but products and reading weights costs nothing, weights as they are stored."
)


class Section(NamedTuple):
    """A table: a title, the columns' names and the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(result: dict[str, Any]) -> list[Section]:
    """The tables of the report that have rows."""
    tables = [_measure_table(name, result) for name in MEASURES]
    tables += [_ratio_table(result), _peak_table(result), _agreement_table(result)]
    tables.append(Section("not measured", ("", "why"), tuple(result["failures"].items())))
    return [table for table in tables if table.rows]


def as_text(result: dict[str, Any]) -> str:
    """The report as plain text."""
    blocks = ["\n".join(_headline(result))]
    for section in sections(result):
        lines = _aligned([section.columns, *section.rows])
        blocks.append("\n".join([section.title, *(f"{_GAP}{line}" for line in lines)]))
    return "\n\n".join(blocks)


def as_markdown(result: dict[str, Any], title: str) -> str:
    """The report as Markdown, with the command."""
    blocks = [f"# {title}", "\n".join(f"- {line}" for line in _headline(result)), f"    {result['command']}"]
    blocks.append(_READING)
    for section in sections(result):
        rows = [section.columns, tuple("---" for _ in section.columns), *section.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        blocks.append("\n".join([f"## {section.title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"


def file_name(result: dict[str, Any], date: datetime.date) -> str:
    """``<what>_<hardware>_<yyyymm>``, without an ending."""
    card, what = result["environment"], result["settings"]["what"]
    parts = ["whole"] if len(what) == len(MEASURES) else what
    name = re.sub(r"[^a-z0-9.]+", "-", "-".join([result["model"]["name"], *parts]).lower()).strip("-")
    return f"{name}_{hardware_slug(card['cpu'], card['cores'])}_{date:%Y%m}"


def _headline(result: dict[str, Any]) -> list[str]:
    card, model = result["environment"], result["model"]
    versions = {name: card.get(name) for name in ("fastvlm", "commit", "torch", "transformers", "openvino")}
    versions |= {name: card.get(name) for name in ("nncf", "onnxruntime", "xllamacpp", "gguf", "timm", "python")}
    random = ", random" if model["is_random"] else ""
    memory = f", {card['memory_bytes'] / 2**30:.0f} GiB" if card["memory_bytes"] else ""
    gpu = f"{card['gpu']}, " if card.get("gpu") else ""
    kernels = f"kernels: {card['kernels']}" if card.get("kernels") else "kernels unknown"
    run = f"{result['rounds']} rounds in {result['seconds']:.0f} s, {card['threads']} threads"
    return [
        f"{model['name']} ({model['parameters'] / 1e6:,.0f} M parameters{random}), {run}",
        f"{gpu}{card['cpu']}, {card['cores']} cores{memory}, {' '.join(card['instruction_sets'])}; {kernels}",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"load before the run: {card['load_average']}",
    ]


def _measure_table(name: str, result: dict[str, Any]) -> Section:
    measure = MEASURES[name]
    rows = [_measure_row(found, result["roofline"]) for found in result["measures"] if found["measure"] == name]
    unit = {"bytes": "MB"}.get(measure.unit, measure.unit)
    columns = ["", f"median {unit}", "quartiles", "range", "limit", "reached", "made of (s)"]
    for column in range(len(columns) - 1, 3, -1):  # not those that nobody has
        if not any(row[column] for row in rows):
            columns, rows = (
                [*columns[:column], *columns[column + 1 :]],
                [row[:column] + row[column + 1 :] for row in rows],
            )
    return Section(f"{name}: {measure.what}", tuple(columns), tuple(rows))


def _measure_row(found: dict[str, Any], roofline: dict[str, Any]) -> tuple[str, ...]:
    scale = 1e-6 if found["unit"] == "bytes" else 1.0
    case = ", ".join(f"{value} {'px' if key == 'side_px' else 'together'}" for key, value in found["case"].items())
    parts = ", ".join(f"{part.replace('_', ' ')} {_short(value)}" for part, value in found["parts"].items())
    low, high = (_short(scale * value) for value in found["quartiles"])
    least, most = (_short(scale * value) for value in found["range"])
    label = f"{found['contestant']} {case}".strip()
    key = " ".join([found["measure"], *map(str, found["case"].values()), found["contestant"]])
    limit, fraction = (roofline[name].get(key) for name in ("limits", "fractions"))
    of_limit = (_short(limit), f"{100 * fraction:.0f} %") if limit else ("", "")
    return label, _short(scale * found["median"]), f"{low} to {high}", f"{least} to {most}", *of_limit, parts


def _short(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _ratio_table(result: dict[str, Any]) -> Section:
    rows = [
        (name, f"{result['ratios'][name]:.2f}", f"{low:.2f} to {high:.2f}")
        for name, (low, high) in result["ratio_ranges"].items()
    ]
    return Section("ratios (above 1: fastvlm is better)", ("", "of medians", "of single rounds"), tuple(rows))


def _peak_table(result: dict[str, Any]) -> Section:
    peaks = result["roofline"]["peaks"]
    rows = [
        (name, f"{value * 1e-9:.3g} GB/s" if name == BANDWIDTH else f"{value * 1e-12:.3g} TFLOP/s")
        for name, value in peaks.items()
    ]
    title = "limits of this machine: reading memory, and multiply-adds by level and number type"
    return Section(title, ("", "measured"), tuple(rows))


def _agreement_table(result: dict[str, Any]) -> Section:
    rows = []
    for name, found in result["agreement"].items():
        (kind, reference), *values = found.items()
        agreement = ", ".join(f"{contestant} {value:g}" for contestant, value in values)
        rows.append((name, f"{kind.replace('_', ' ')} {reference}", agreement))
    return Section("agreement", ("", "what", "contestants"), tuple(rows))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_files(result: dict[str, Any], folder: Path, stem: str) -> Path:
    """Write the report as Markdown to `folder`; returns the file."""
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}.md"
    write_file(file, as_markdown(result, stem.replace("_", ", ")))
    return file
