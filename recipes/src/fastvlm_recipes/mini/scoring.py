"""Exact match, character error rate, and scores with their confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm.evaluation.metrics.metric import Z_95, wilson_interval
from fastvlm.evaluation.metrics.text_match import edit_distance, normalized


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Normalized exact match with any of the accepted answers."""
    return normalized(answer) in {normalized(one) for one in accepted}


def character_error_rate(answers: Sequence[str], truths: Sequence[str]) -> float:
    """Edits needed per true character, over all answers together, blind to case."""
    edits = sum(
        edit_distance(answer.casefold(), truth.casefold()) for answer, truth in zip(answers, truths, strict=True)
    )
    return edits / max(1, sum(map(len, truths)))


@dataclass(frozen=True)
class Score:
    """Right answers out of n."""

    right: int
    n: int

    @property
    def share(self) -> float:
        """Right answers per question, 0 to 1."""
        return self.right / self.n

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson_interval(self.share, self.n, z)


def score(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> Score:
    """How many answers are right."""
    return Score(sum(is_right(answer, good) for answer, good in zip(answers, accepted, strict=True)), len(answers))


def majority(accepted: Sequence[Sequence[str]]) -> Score:
    """Score of always giving the most frequent answer."""
    commonest = Counter(normalized(good[0]) for good in accepted).most_common(1)[0][0]
    return score([commonest] * len(accepted), accepted)
