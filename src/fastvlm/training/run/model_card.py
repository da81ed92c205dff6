"""Model card (README.md) of a run's result: checkpoint, data, recipe, losses, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.training.recipe import PARTS, Recipe

_LICENSE = (
    "That of the checkpoint that training began from, and of the data. Apple's FastVLM weights and models derived from "
    "them are for research only (Apple Machine Learning Research Model license)."
)


@dataclass(frozen=True)
class TestScore:
    """Score of a test on the final folder.

    Attributes:
        test, n: its name, and its number of questions.
        metric: its name.
        score: mean over the questions, 0 to 1 (CIDEr: 0 to 10).
        interval: 95 % confidence interval; None if the score is not a mean.
        majority: the score of always giving the most frequent answer; None if that has no meaning.
        is_share: shown in percent; False for CIDEr.
    """

    __test__ = False  # pytest takes classes called Test... for tests

    test: str
    n: int
    metric: str
    score: float
    interval: tuple[float, float] | None = None
    majority: float | None = None
    is_share: bool = True

    def shown(self, value: float | None) -> str:
        """`value`, in this score's unit."""
        return "-" if value is None else f"{value:.1%}" if self.is_share else f"{value:.3f}"


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run for the model card.

    Attributes:
        num_samples: training samples of an epoch.
        num_parameters, num_trained: all weights of the model, and the trained ones.
        num_steps: completed steps.
        log: the run's log.
        tool: version and commit of fastvlm.
        machine: number and name of the devices.
        is_multi_branch: the encoder was trained with its branches, and fused for this folder.
        scores: of the recipe's tests; none before they are run.
    """

    num_samples: int
    num_parameters: int
    num_trained: int
    num_steps: int
    log: Sequence[Mapping[str, Any]]
    tool: str
    machine: str
    is_multi_branch: bool = False
    scores: Sequence[TestScore] = ()


def model_card(recipe: Recipe, facts: RunFacts, *, is_adapter: bool = False) -> str:
    """The text, in Markdown with the Hub's front matter."""
    base = "" if recipe.from_scratch else f"base_model: {recipe.model}\n"
    return f"""---
pipeline_tag: image-text-to-text
library_name: {"peft" if is_adapter else "transformers"}
{base}tags: [fastvlm]
---

# {recipe.name}

{_what(recipe, facts, is_adapter=is_adapter)}

## Data

{_data(recipe, facts)}

## Training

{_training(recipe, facts)}

## Evaluation

{_evaluation(facts)}

## Recipe

```yaml
{recipe.to_yaml()}```

## License

{_LICENSE}
"""


def _what(recipe: Recipe, facts: RunFacts, *, is_adapter: bool) -> str:
    if recipe.from_scratch:
        return f"A FastVLM of the sizes of `{recipe.model}`, trained from random weights; its encoder is fused."
    if is_adapter:
        use = f'fastvlm ask image.png "..." -m {recipe.model} --adapter .'
        return f"An adapter (LoRA) for `{recipe.model}`. Use: `{use}`"
    fused = " Its encoder was trained with all its branches and is fused here." if facts.is_multi_branch else ""
    return f"`{recipe.model}`, trained further; in the `fast_vlm` format of transformers.{fused}"


def _data(recipe: Recipe, facts: RunFacts) -> str:
    rows = [f"- `{Path(entry.path).name}`, used {entry.repeat:g} times an epoch" for entry in recipe.data]
    return "\n".join([*rows, f"\n{facts.num_samples:,} samples an epoch."])


def _training(recipe: Recipe, facts: RunFacts) -> str:
    rows = ["| part | trained | learning rate |", "| --- | --- | --- |"]
    for part in PARTS:
        entry = recipe.parts.of(part)
        has_adapter = recipe.lora is not None and part in recipe.lora.parts
        what = "adapters" if has_adapter else "nothing" if entry.is_frozen else "all weights"
        rows.append(f"| {part} | {what} | {'-' if entry.is_frozen else f'{entry.rate:g}'} |")
    share = facts.num_trained / max(facts.num_parameters, 1)
    words = (
        f"{facts.num_steps:,} steps of {recipe.batch_size} samples, {recipe.schedule} schedule after a warm-up of "
        f"{recipe.warmup_ratio:.0%}, AdamW; {facts.num_trained:,} of {facts.num_parameters:,} weights trained "
        f"({share:.1%}). Made with {facts.tool} on {facts.machine}."
    )
    return "\n".join([*rows, "", words])


def _evaluation(facts: RunFacts) -> str:
    blocks, rows = [], []
    if losses := [line["loss"] for line in facts.log if "loss" in line]:
        tail = losses[-max(1, len(losses) // 20) :]
        rows.append(f"- training loss per token: {losses[0]:.3f} at first, {sum(tail) / len(tail):.3f} at the end")
    if held_out := [line["eval_loss"] for line in facts.log if "eval_loss" in line]:
        rows.append(f"- loss per token on held-out samples: {held_out[-1]:.3f}")
    if rows:
        blocks.append("\n".join(rows))
    if facts.scores:
        blocks.append(_score_table(facts.scores))
    return "\n\n".join(blocks) or "Nothing was measured."


def _score_table(scores: Sequence[TestScore]) -> str:
    rows = ["| test | n | metric | score | 95 % interval | most frequent answer |"]
    rows.append("| --- | ---: | --- | ---: | --- | ---: |")
    for one in scores:
        interval = "-" if one.interval is None else " to ".join(map(one.shown, one.interval))
        cells = (one.test, str(one.n), one.metric, one.shown(one.score), interval, one.shown(one.majority))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", "Measured on this folder after training, as by `fastvlm eval`; Wilson's intervals."])
