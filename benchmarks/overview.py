"""The table and the plot at the top of docs/performance.md, made from the result files of this folder.

python benchmarks/overview.py docs/performance.svg     # draws the plot and prints the table
"""

import json
import sys
from pathlib import Path
from typing import Any

from fastvlm.plots import COLORS, figure_file

HERE = Path(__file__).parent
RUNS = {  # machine, dtype -> result file
    "2 cores of a Xeon with AMX, bfloat16": "random-0.5b-whole_xeon-amx-2cores_202611",
    "2 cores of an EPYC (Zen 4, AVX-512), bfloat16": "random-0.5b-whole_epyc-zen4-2cores_202611",
    "2 cores of an EPYC (Zen 3, AVX2 only), float32": "random-0.5b-whole_epyc-zen3-2cores_202611",
    "NVIDIA H100, bfloat16": "random-0.5b-gpu_h100_202611",
}
# Row -> measure, our contestant, ratio in the file.
ROWS = {
    "encode 1024 px, s": ("encode", "fastvlm", "encode_vs_transformers"),
    "image to first text, s": ("ttft", "fastvlm", "ttft_vs_transformers"),
    "decode, tokens/s": ("decode", "fastvlm", "decode_vs_transformers"),
    "decode int8, tokens/s": ("decode", "fastvlm-int8", "decode_int8_vs_transformers"),
    "decode int4, tokens/s": ("decode", "fastvlm-int4", "decode_int4_vs_transformers"),
    "8 replies together, tokens/s": ("throughput", "fastvlm", "throughput_8_vs_transformers"),
    "memory, MB": ("memory", "fastvlm", "memory_vs_transformers"),
}
PEERS = ("transformers", "openvino", "onnxruntime-float32")


def median(result: dict[str, Any], measure: str, contestant: str) -> str:
    """The median as text, "" where it was not measured; of throughput the one of 8 replies."""
    for entry in result["measures"]:
        if (entry["measure"], entry["contestant"]) == (measure, contestant) and entry["case"].get("streams", 8) == 8:
            value = entry["median"] / (1e6 if entry["unit"] == "bytes" else 1)
            return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Machine x measure x peer, as Markdown."""
    lines = [
        "| machine | measure | fastvlm | transformers | OpenVINO | ONNX Runtime | times better than transformers |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for machine, result in results.items():
        for row, (measure, contestant, ratio) in ROWS.items():
            ours = median(result, measure, contestant)
            if ours:
                others = [median(result, measure, peer) for peer in PEERS]
                times = result["ratios"].get(ratio)
                lines.append("| " + " | ".join([machine, row, ours, *others, f"{times:.1f}" if times else ""]) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], file: Path) -> None:
    """How many times better than transformers, one panel a machine; lines reach from the worst to the best round."""
    drawn = {
        machine: [(row, ratio) for row, (_, _, ratio) in ROWS.items() if result["ratios"].get(ratio)]
        for machine, result in results.items()
    }
    heights = [0.45 + 0.25 * len(rows) for rows in drawn.values()]
    with figure_file(file, "fastvlm, times better than transformers (0.5B's shapes)", heights) as panels:
        for axes, (machine, rows) in zip(panels, drawn.items(), strict=True):
            ratios = [results[machine]["ratios"][ratio] for _, ratio in rows]
            ranges = [results[machine]["ratio_ranges"][ratio] for _, ratio in rows]
            errors = [
                [value - low for value, (low, _) in zip(ratios, ranges, strict=True)],
                [high - value for value, (_, high) in zip(ratios, ranges, strict=True)],
            ]
            labels = [row.split(",")[0] for row, _ in rows]
            axes.barh(range(len(rows)), ratios, xerr=errors, color=COLORS[0], tick_label=labels)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.set_title(machine, loc="left", fontsize=9)
            axes.set_xlim(0, 16)
            axes.invert_yaxis()
            for number, (value, (_, high)) in enumerate(zip(ratios, ranges, strict=True)):
                axes.annotate(f"{value:.1f}", (high, number), xytext=(6, 0), textcoords="offset points", va="center")


def read_results() -> dict[str, dict[str, Any]]:
    """Machine -> its result file."""
    return {machine: json.loads((HERE / f"{name}.json").read_text()) for machine, name in RUNS.items()}


if __name__ == "__main__":
    plot(read_results(), Path(sys.argv[1]))
    sys.stdout.write(f"{table(read_results())}\n")
