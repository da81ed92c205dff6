"""The table and the plot at the top of docs/performance.md, made from this version's result files in this folder.

python benchmarks/overview.py     # writes docs/performance.md's table and docs/performance.svg
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fastvlm
from fastvlm.bench.filed_results import machine_of, read_filed
from fastvlm.plots import COLORS, figure_file

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".svg")
START, END = "<!-- made by benchmarks/overview.py -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """A line of the table: our contestant of a measure, and those it is compared with."""

    measure: str
    ours: str
    peers: tuple[str, ...]
    streams: int | None = None


def decoding(measure: str, bits: int, streams: int | None = None) -> Row:
    """A row of the decoder: peers with as many bits; transformers has 16."""
    suffix = "" if bits == 16 else f"-int{bits}"
    peers = (f"llama.cpp{suffix}", f"openvino{suffix}", *(["transformers"] if bits == 16 else []))
    return Row(measure, f"fastvlm{suffix}", peers, streams)


ROWS = {
    "encode 1024 px, s": Row(
        "encode", "fastvlm", ("transformers", "openvino", "openvino-float32", "onnxruntime-float32")
    ),
    "encode, 8 bits, s": Row("encode", "fastvlm-encoder8", ("openvino-int8",)),
    "image to first text (TTFT), s": Row("ttft", "fastvlm", ("transformers",)),
    "TTFT, encoder in 8 bits, s": Row("ttft", "fastvlm-encoder8", ()),
    "another question about the image, s": Row("second-question", "fastvlm", ()),
    **{f"prefill of 290, {bits} bits, s": decoding("prefill", bits) for bits in (16, 8, 4)},
    **{f"decode, {bits} bits, tokens/s": decoding("decode", bits) for bits in (16, 8, 4)},
    **{f"8 together, {bits} bits, tokens/s": decoding("throughput", bits, 8) for bits in (16, 8, 4)},
    "cold start, s": Row("cold-start", "fastvlm", ("transformers",)),
    "memory, MB": Row("memory", "fastvlm", ("transformers",)),
}


def entry(result: dict[str, Any], row: Row, contestant: str) -> dict[str, Any] | None:
    """The measurement of a contestant for a row, if there is one."""
    for found in result["measures"]:
        is_case = row.streams in (None, found["case"].get("streams"))
        if is_case and (found["measure"], found["contestant"]) == (row.measure, contestant):
            return dict(found)
    return None


def best_peer(result: dict[str, Any], row: Row) -> dict[str, Any] | None:
    """The peer with the best median."""
    found = [peer for name in row.peers if (peer := entry(result, row, name)) is not None]
    best = max if any(peer["unit"] == "tokens/s" for peer in found) else min
    return best(found, key=lambda peer: peer["median"]) if found else None


def number(value: float, unit: str) -> str:
    """Three significant digits; memory in MB."""
    value = value / (1e6 if unit == "bytes" else 1)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(found: dict[str, Any] | None) -> str:
    """Median, and in brackets the lowest and the highest round."""
    if found is None:
        return ""
    middle, low, high = (number(value, found["unit"]) for value in (found["median"], *found["range"]))
    return middle if low == high else f"{middle} ({low} to {high})"


def name_of(machine: dict[str, Any]) -> str:
    """What a machine is called in the table."""
    card, dtype = machine["environment"], machine["settings"]["dtypes"][0]
    kind = machine_of(machine)
    what = kind.gpu or f"{kind.cores} cores of {kind.cpu}"
    return f"{what}, {dtype}, kernels {card['kernels']}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Machine x measure x (we, best peer, limit), as Markdown."""
    lines = [
        "| machine | measure | fastvlm | best peer | | limit | of limit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stem, result in results.items():
        for label, row in ROWS.items():
            ours, peer = entry(result, row, row.ours), best_peer(result, row)
            if ours is None:
                continue
            key = " ".join([row.measure, *map(str, ours["case"].values()), row.ours])
            limit, fraction = (result["roofline"][name].get(key) for name in ("limits", "fractions"))
            cells = [f"[{name_of(result)}](../benchmarks/{stem}.md)", label, cell(ours), cell(peer)]
            cells += [peer["contestant"] if peer else "", number(limit, ours["unit"]) if limit else ""]
            lines.append("| " + " | ".join([*cells, f"{100 * fraction:.0f} %" if fraction else ""]) + " |")
    return "\n".join(lines)


def section(results: dict[str, dict[str, Any]]) -> str:
    """All that stands between the marks of the page."""
    if not results:
        return f"No result of version {fastvlm.__version__} is filed yet; `make bench` measures and files one.\n"
    return f"{table(results)}\n\n![Times better than the best peer, by machine and measure]({PLOT.name})\n"


def plot(results: dict[str, dict[str, Any]], file: Path) -> None:
    """How many times better than the best peer, one panel a machine."""
    drawn: dict[str, dict[str, float]] = {}
    for stem, result in results.items():
        for label, row in ROWS.items():
            ours, peer = entry(result, row, row.ours), best_peer(result, row)
            if ours is not None and peer is not None:
                ratio = ours["median"] / peer["median"]
                drawn.setdefault(stem, {})[label] = ratio if ours["unit"] == "tokens/s" else 1 / ratio
    heights = [0.45 + 0.25 * len(rows) for rows in drawn.values()]
    with figure_file(file, "fastvlm, times better than the best peer (0.5B's shapes)", heights) as panels:
        for axes, (stem, rows) in zip(panels, drawn.items(), strict=True):
            labels = [
                f"{label.rpartition(',')[0]} / {best_peer(results[stem], ROWS[label])['contestant']}" for label in rows
            ]
            axes.barh(range(len(rows)), list(rows.values()), color=COLORS[0], tick_label=labels)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.set_title(name_of(results[stem]), loc="left", fontsize=9)
            axes.margins(x=0.15)
            axes.invert_yaxis()
            for place, value in enumerate(rows.values()):
                axes.annotate(f"{value:.2f}", (value, place), xytext=(6, 0), textcoords="offset points", va="center")


def read_results() -> dict[str, dict[str, Any]]:
    """File name -> this version's results with the 0.5B's shapes, the latest of each machine."""
    found = read_filed(HERE, fastvlm.__version__)
    latest = {name_of(result): stem for stem, result in found.items() if result["model"]["name"] == "random 0.5b"}
    return {stem: found[stem] for stem in latest.values()}


def written(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with its section made anew."""
    return re.sub(f"{START}.*?{END}", lambda _: f"{START}\n{section(results)}\n{END}", page, flags=re.DOTALL)


def main() -> int:
    """Write page and plot."""
    results = read_results()
    if results:
        plot(results, PLOT)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    sys.stdout.write(f"{section(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
