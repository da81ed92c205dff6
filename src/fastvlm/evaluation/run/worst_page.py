"""HTML page of the lowest-scored questions with their images: one self-contained file without scripts."""

from __future__ import annotations

import base64
import html
import io
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.evaluation.questions import ImageSource, Question
from fastvlm.evaluation.run.predictions import Prediction
from fastvlm.evaluation.run.scores import Row, by_test
from fastvlm.images import open_image

_SIDE_PX = 256
_QUALITY = 80
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "article{display:flex;gap:1rem;flex-wrap:wrap;border-top:1px solid #8884;padding:1rem 0}"
    "img{max-width:16rem;max-height:16rem;background:#8882}dl{margin:0;flex:1 1 20rem}dt{font-size:.8rem;opacity:.7}"
    "dd{margin:0 0 .5rem;white-space:pre-wrap;overflow-wrap:anywhere}"
)


@dataclass(frozen=True)
class WorstCase:
    """A question with its reply and score."""

    question: Question
    prediction: Prediction
    score: float


def worst_cases(
    questions: Sequence[Question], seen: Mapping[str, Prediction], rows: Sequence[Row], count: int, seed: int = 0
) -> list[WorstCase]:
    """At most `count` questions with the lowest scores below 1; ties are broken at random."""
    groups, scores = by_test(questions), {row.test: row.each for row in rows}
    cases = [
        WorstCase(question, seen[question.id], score)
        for test, group in groups.items()
        for question, score in zip(group, scores[test], strict=True)
        if score < 1
    ]
    random.Random(seed).shuffle(cases)  # noqa: S311 - a sample, no secret
    return sorted(cases, key=lambda case: case.score)[:count]


def worst_page(title: str, cases: Sequence[WorstCase], num_questions: int) -> str:
    """The page as HTML; all texts are escaped, and a policy forbids it to load or run anything."""
    articles = "\n".join(_article(case) for case in cases) or "<p>Every reply is right.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_shown(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_shown(title)}</h1><p>The {len(cases)} worst of {num_questions} questions; of equals, some by lot.</p>\n"
        f"{articles}\n</body></html>\n"
    )


def _article(case: WorstCase) -> str:
    images = "".join(_thumbnail(image) for image in case.question.images)
    error = case.prediction.error
    rows = {
        "question": case.question.text,
        "reply": case.prediction.reply if error is None else f"could not be asked: {error}",
        "answers": " | ".join(dict.fromkeys(case.question.answers)),
        "score": f"{case.score:.2f}",
        "test, id": f"{case.question.test}, {case.question.id}",
    }
    terms = "".join(f"<dt>{name}</dt><dd>{_shown(text)}</dd>" for name, text in rows.items())
    return f"<article><div>{images}</div><dl>{terms}</dl></article>"


def _thumbnail(source: ImageSource) -> str:
    """An inlined image of at most 256 px, or a note that it cannot be opened."""
    try:
        image = open_image(source)
    except ImageError as error:
        return f"<p>{_shown(str(error))}</p>"
    small = image.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{data}">'


def _shown(text: str) -> str:
    """Escape HTML; replace control characters and lone surrogates by U+FFFD."""
    clean = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text
    )
    return html.escape(clean)
