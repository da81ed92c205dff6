"""A result as a report: plain text for the terminal, Markdown for a file."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, NamedTuple

from fastvlm.bench.machine import hardware_slug
from fastvlm.bench.plan import MEASURES
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.write_errors import clear_write_errors

_GAP = "  "


class Section(NamedTuple):
    """A table: a title, the columns' names and the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(result: dict[str, Any]) -> list[Section]:
    """The tables of the report that have rows."""
    tables = [_measure_table(name, result) for name in MEASURES]
    tables += [_ratio_table(result), _roofline_table(result), _agreement_table(result)]
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
    blocks.append("Medians with quartiles and range over the rounds; ratios above 1 mean that fastvlm is better.")
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
    versions |= {name: card.get(name) for name in ("onnxruntime", "timm", "python")}
    random = ", random" if model["is_random"] else ""
    memory = f", {card['memory_bytes'] / 2**30:.0f} GiB" if card["memory_bytes"] else ""
    gpu = f"{card['gpu']}, " if card.get("gpu") else ""
    run = f"{result['rounds']} rounds in {result['seconds']:.0f} s, {card['threads']} threads"
    return [
        f"{model['name']} ({model['parameters'] / 1e6:,.0f} M parameters{random}), {run}",
        f"{gpu}{card['cpu']}, {card['cores']} cores{memory}, {' '.join(card['instruction_sets'])}",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        f"load before the run: {card['load_average']}",
    ]


def _measure_table(name: str, result: dict[str, Any]) -> Section:
    measure = MEASURES[name]
    rows = [_measure_row(found) for found in result["measures"] if found["measure"] == name]
    unit = {"bytes": "MB"}.get(measure.unit, measure.unit)
    columns = ["", f"median {unit}", "quartiles", "range", "made of (s)"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Section(f"{name}: {measure.what}", tuple(columns), tuple(rows))


def _measure_row(found: dict[str, Any]) -> tuple[str, ...]:
    scale = 1e-6 if found["unit"] == "bytes" else 1.0
    case = ", ".join(f"{value} {'px' if key == 'side_px' else 'together'}" for key, value in found["case"].items())
    parts = ", ".join(f"{part.replace('_', ' ')} {_short(value)}" for part, value in found["parts"].items())
    low, high = (_short(scale * value) for value in found["quartiles"])
    least, most = (_short(scale * value) for value in found["range"])
    label = f"{found['contestant']} {case}".strip()
    return label, _short(scale * found["median"]), f"{low} to {high}", f"{least} to {most}", parts


def _short(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _ratio_table(result: dict[str, Any]) -> Section:
    rows = [
        (name, f"{result['ratios'][name]:.2f}", f"{low:.2f} to {high:.2f}")
        for name, (low, high) in result["ratio_ranges"].items()
    ]
    return Section("ratios (above 1: fastvlm is better)", ("", "of medians", "of single rounds"), tuple(rows))


def _roofline_table(result: dict[str, Any]) -> Section:
    roofline = result["roofline"]
    units = {"matrix_peak": (1e-12, "TFLOP/s"), "bandwidth": (1e-9, "GB/s")}
    peaks = [
        (f"peak: {name.replace('_', ' ')}", f"{value * units[name][0]:.3g} {units[name][1]}")
        for name, value in roofline["peaks"].items()
    ]
    rows = [(name, f"{100 * value:.0f} %") for name, value in roofline["fractions"].items()]
    return Section("fractions of this machine's peaks", ("", "reached"), (*peaks, *rows))


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
