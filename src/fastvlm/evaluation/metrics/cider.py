"""CIDEr score of captions.

Source: Vedantam et al., CIDEr: Consensus-based Image Description Evaluation (CVPR 2015, arXiv 1411.5726); computed by
the COCO team's code (CIDEr-D, 1- to 4-grams, sigma 6) in the package pycocoevalcap. That code splits words with
Stanford's tokenizer, which needs Java; here :func:`caption_words` does it, by the same rules for plain English, so that
scores may differ a little from those that were made with Java.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastvlm.errors import MissingExtraError
from fastvlm.evaluation.metrics.metric import Judged
from fastvlm.evaluation.questions import Question

_WORD = re.compile(r"\d+(?:[.,]\d+)+|'[a-z]+|\w+(?:-\w+)*|[^\W_]+", re.IGNORECASE)
_NEGATED = re.compile(r"(\w)(n't)\b", re.IGNORECASE)


def caption_words(text: str) -> str:
    """Lower-case words joined by spaces, without punctuation, split as in the Penn Treebank ("is n't", "dog 's")."""
    parted = _NEGATED.sub(r"\1 n_t", text)
    return " ".join(word.lower().replace("n_t", "n't") for word in _WORD.findall(parted))


def judge_captions(replies: Sequence[str], questions: Sequence[Question]) -> Judged:
    """CIDEr over all captions (about 1 for a person's caption, at most 10) and for each one.

    How rare a word is is counted in these questions' own references, so a score of few questions means little.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    references = {number: [caption_words(one) for one in q.answers] for number, q in enumerate(questions)}
    captions = {number: [caption_words(reply)] for number, reply in enumerate(replies)}
    score, each = _cider().compute_score(references, captions)
    return Judged(float(score), tuple(float(one) for one in each), is_mean=False)


def _cider() -> Any:
    try:
        from pycocoevalcap.cider.cider import Cider  # noqa: PLC0415 - only captions need it
    except ImportError as error:
        raise MissingExtraError("pycocoevalcap", "eval", "CIDEr, the captions' score,") from error
    return Cider()
