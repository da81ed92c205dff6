"""README.md of what a run wrote: from which checkpoint and data, by which recipe, with which loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.training.recipe import PARTS, Recipe

__all__ = ["RunFacts", "model_card"]

_LICENCE = (
    "That of the checkpoint it began from, and of the data. Apple's FastVLM weights, and what is made from them, are "
    "for research only (Apple Machine Learning Research Model licence)."
)


@dataclass(frozen=True)
class RunFacts:
    """What the card tells beside the recipe.

    Attributes:
        num_samples: that were learnt from in an epoch.
        num_parameters, num_trained: weights of the model, and those that learnt.
        num_steps: made.
        log: the run's log.
        tool: version and commit of what trained.
        machine: in words.
        is_multi_branch: the encoder was trained with its branches, and fused for this folder.
        scores: of an evaluation after training, by test.
    """

    num_samples: int
    num_parameters: int
    num_trained: int
    num_steps: int
    log: Sequence[Mapping[str, Any]]
    tool: str
    machine: str
    is_multi_branch: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)


def model_card(recipe: Recipe, facts: RunFacts, *, is_adapter: bool = False) -> str:
    """The text, in Markdown with the Hub's front matter."""
    blocks = [
        _front_matter(recipe, is_adapter=is_adapter),
        f"# {recipe.name}",
        _what(recipe, facts, is_adapter=is_adapter),
        "## Data",
        _data(recipe, facts),
        "## Training",
        _training(recipe, facts),
        "## Evaluation",
        _evaluation(facts),
        "## Recipe",
        f"```yaml\n{recipe.to_yaml()}```",
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(recipe: Recipe, *, is_adapter: bool) -> str:
    lines = ["---", "pipeline_tag: image-text-to-text", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    if not recipe.from_scratch:
        lines += [f"base_model: {recipe.model}"]
    return "\n".join([*lines, "tags: [fastvlm]", "---"])


def _what(recipe: Recipe, facts: RunFacts, *, is_adapter: bool) -> str:
    if recipe.from_scratch:
        return f"A FastVLM of the sizes of `{recipe.model}`, trained from random weights; its encoder is fused."
    if is_adapter:
        use = f'fastvlm ask picture.png "..." -m {recipe.model} --adapter .'
        return f"An adapter (LoRA) for `{recipe.model}`. Use: `{use}`"
    fused = " Its encoder was trained with all its branches and is fused here." if facts.is_multi_branch else ""
    return f"`{recipe.model}`, trained further; in the `fast_vlm` format of transformers.{fused}"


def _data(recipe: Recipe, facts: RunFacts) -> str:
    rows = [f"- `{Path(entry.path).name}`, seen {entry.repeat:g} times an epoch" for entry in recipe.data]
    return "\n".join([*rows, f"\n{facts.num_samples:,} samples an epoch."])


def _training(recipe: Recipe, facts: RunFacts) -> str:
    rows = ["| part | what learnt | learning rate |", "| --- | --- | --- |"]
    for part in PARTS:
        entry = recipe.parts.of(part)
        has_adapter = recipe.lora is not None and part in recipe.lora.parts
        what = "adapters" if has_adapter else "nothing" if entry.is_frozen else "all weights"
        rows.append(f"| {part} | {what} | {'-' if entry.is_frozen else f'{entry.rate:g}'} |")
    share = facts.num_trained / max(facts.num_parameters, 1)
    words = (
        f"{facts.num_steps:,} steps of {recipe.batch_size} samples, {recipe.schedule} schedule after a warm-up of "
        f"{recipe.warmup_ratio:.0%}, AdamW; {facts.num_trained:,} of {facts.num_parameters:,} weights learnt "
        f"({share:.1%}). Made with {facts.tool} on {facts.machine}."
    )
    return "\n".join([*rows, "", words])


def _evaluation(facts: RunFacts) -> str:
    rows = []
    losses = [line["loss"] for line in facts.log if "loss" in line]
    if losses:
        tail = losses[-max(1, len(losses) // 20) :]
        rows.append(
            f"- loss a token on what was learnt: {losses[0]:.3f} at first, {sum(tail) / len(tail):.3f} at the end"
        )
    put_aside = [line["eval_loss"] for line in facts.log if "eval_loss" in line]
    if put_aside:
        rows.append(f"- loss a token on samples that were put aside: {put_aside[-1]:.3f}")
    rows += [f"- {test}: {score:.1%}" for test, score in facts.scores.items()]
    return "\n".join(rows) or "Nothing was measured."
