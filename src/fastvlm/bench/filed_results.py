"""Results that are filed as JSON in a folder, and what has become slower since one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastvlm.bench.results import SCHEMA

_FALL = 0.8  # of a filed ratio; a ratio below that has fallen by more than a fifth


class Machine(NamedTuple):
    """Kind of machine: ratios of two runs are comparable if theirs are equal."""

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    gpu: str

    def __str__(self) -> str:
        return f"{self.cores} cores of {self.cpu} ({' '.join(self.instruction_sets)}){self.gpu and ', ' + self.gpu}"


class Fall(NamedTuple):
    """A ratio that has fallen by more than a fifth."""

    name: str
    filed: float
    new: float
    of_rounds: tuple[float, float]  # the new one's range over single rounds

    def __str__(self) -> str:
        low, high = self.of_rounds
        lost = 100 * (1 - self.new / self.filed)
        return f"{self.name}: {self.new:.2f} ({low:.2f} to {high:.2f}), filed {self.filed:.2f}: {lost:.0f} % less"


def machine_of(result: Mapping[str, Any]) -> Machine:
    """The machine that a result was measured on."""
    card = result["environment"]
    return Machine(card["cpu"], card["cores"], tuple(card["instruction_sets"]), card.get("gpu") or "")


def read_filed(folder: Path, version: str | None = None) -> dict[str, dict[str, Any]]:
    """File name without its end -> the result, of all that `fastvlm bench --out` wrote to `folder`, by name.

    Args:
        folder: with .json files; those of other programs and of older schemas are left out.
        version: of fastvlm; None for all.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        is_result = isinstance(content, dict) and content.get("schema") == SCHEMA and "ratios" in content
        if is_result and version in (None, content["environment"]["fastvlm"]):
            found[file.stem] = content
    return found


def comparable(new: Mapping[str, Any], filed: Mapping[str, dict[str, Any]]) -> str | None:
    """Name of the latest filed result of the same kind of machine, model and dtype, or None."""
    same = [name for name, result in filed.items() if _kind(result) == _kind(new)]
    return max(same, key=lambda name: name.rpartition("_")[2], default=None)


def _kind(result: Mapping[str, Any]) -> tuple[Machine, str, str, str]:
    kernels, dtype = result["environment"]["kernels"], result["settings"]["dtypes"][0]
    return machine_of(result), result["model"]["name"], dtype, kernels


def falls(new: Mapping[str, Any], filed: Mapping[str, Any]) -> list[Fall]:
    """The ratios of `new` that are more than a fifth below those of `filed`; absolute times are not compared."""
    found = []
    for name, before in filed["ratios"].items():
        now = new["ratios"].get(name)
        if before is not None and now is not None and now < _FALL * before:
            found.append(Fall(name, before, now, tuple(new["ratio_ranges"][name])))
    return found
