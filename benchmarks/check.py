"""Measure for some minutes, and compare the ratios with the filed ones of the same kind of machine: `make bench-check`.

python benchmarks/check.py [RESULT.json]     # with a file nothing is measured

Exit status 1 if a ratio is more than a fifth below the filed one, or the measurement failed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastvlm.bench.filed_results import comparable, falls, machine_of, read_filed

HERE = Path(__file__).parent
SHORT_RUN = (
    *("bench", "--preset", "0.5b", "--keep", "--peers", "--what", "encode,prefill,decode"),
    *("--rounds", "2", "--max-minutes", "5", "--new-tokens", "16", "--json"),
)


def measured() -> dict[str, Any]:
    """The result of a short run, whose progress goes to stderr."""
    command = [sys.executable, "-m", "fastvlm", *SHORT_RUN]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  # our own program
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(new: dict[str, Any], filed: dict[str, dict[str, Any]]) -> tuple[str, int]:
    """What to print, and the exit status."""
    name = comparable(new, filed)
    if name is None:
        kernels, dtype = new["environment"]["kernels"], new["settings"]["dtypes"][0]
        kind = f"{machine_of(new)}, kernels {kernels}, {dtype}, {new['model']['name']}"
        return f"No result is filed for this kind of machine ({kind}), so nothing is compared. {HOW_TO_FILE}", 0
    found = falls(new, filed[name])
    compared = sum(new["ratios"].get(ratio) is not None for ratio, value in filed[name]["ratios"].items() if value)
    lines = [f"{compared} ratios compared with benchmarks/{name}.json; above 1 means that fastvlm is better."]
    lines += [f"fell by more than a fifth: {fall}" for fall in found] or ["None fell by more than a fifth."]
    missing = [f"not measured: {worker}: {why}" for worker, why in new["failures"].items()]
    return "\n".join([*lines, *missing]), 1 if found else 0


HOW_TO_FILE = "To file one on a quiet machine: make bench"


def main(arguments: list[str]) -> int:
    """Print the comparison."""
    new = json.loads(Path(arguments[0]).read_text()) if arguments else measured()
    text, status = report(new, read_filed(HERE))
    sys.stdout.write(f"{text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
