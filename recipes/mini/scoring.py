"""How an answer is judged, and how sure a score is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


def normalised(text: str) -> str:
    """Small letters; no "it is", article, outer punctuation, or runs of blanks; British and American spelling alike."""
    text = re.sub(r"\s+", " ", text.strip().casefold()).strip(" .!\"'")
    text = re.sub(r"^it is ", "", text)
    text = re.sub(r"^(a|an|the) ", "", text)
    return text.replace("colour", "color").replace("grey", "gray")


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Normalised exact match with any of the accepted answers."""
    return normalised(answer) in {normalised(one) for one in accepted}


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements that turn one string into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for index, left in enumerate(first, 1):
        previous, row[0] = row[0], index
        for column, right in enumerate(second, 1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (left != right))
    return row[-1]


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

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        p, n = self.share, self.n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def score(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> Score:
    """How many answers are right."""
    return Score(sum(is_right(answer, good) for answer, good in zip(answers, accepted, strict=True)), len(answers))


def majority(accepted: Sequence[Sequence[str]]) -> Score:
    """What the single most frequent answer, given always, would score."""
    commonest = Counter(normalised(good[0]) for good in accepted).most_common(1)[0][0]
    return score([commonest] * len(accepted), accepted)
