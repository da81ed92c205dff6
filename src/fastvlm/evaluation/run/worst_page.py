"""HTML page of the lowest-scored questions with their images: one self-contained file without scripts."""

from __future__ import annotations

import base64
import html
import io
import random
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from fastvlm.errors import ImageError
from fastvlm.evaluation.questions import ImageSource, Question
from fastvlm.evaluation.run.predictions import Prediction
from fastvlm.evaluation.run.scores import Row, by_test
from fastvlm.images import open_image

_SIDE_PX = 256
_QUALITY = 80
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and newline
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "article{display:flex;gap:1rem;flex-wrap:wrap;border-top:1px solid #8884;padding:1rem 0}"
    "img{max-width:16rem;max-height:16rem;background:#8882}dl{margin:0;flex:1 1 20rem}dt{font-size:.8rem;opacity:.7}"
    "dd{margin:0 0 .5rem;white-space:pre-wrap;overflow-wrap:anywhere}"
)


Case = tuple[Question, Prediction, float]  # a question with its prediction and score


def worst_cases(
    questions: Sequence[Question], seen: Mapping[str, Prediction], rows: Sequence[Row], count: int, seed: int = 0
) -> list[Case]:
    """At most `count` questions with the lowest scores below 1; ties are broken at random."""
    groups, scores = by_test(questions), {row.test: row.each for row in rows}
    cases = [
        (question, seen[question.id], score)
        for test, group in groups.items()
        for question, score in zip(group, scores[test], strict=True)
        if score < 1
    ]
    random.Random(seed).shuffle(cases)  # noqa: S311 - a sample, no secret
    return sorted(cases, key=lambda case: case[2])[:count]


def worst_page(title: str, cases: Sequence[Case], num_questions: int) -> str:
    """The page as HTML; all texts are escaped, and a policy forbids it to load or run anything."""
    articles = "\n".join(_article(*case) for case in cases) or "<p>Every reply is right.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head><body><h1>{_escaped(title)}</h1>"
        f"<p>The {len(cases)} worst of {num_questions} questions; a random choice among equal scores.</p>\n"
        f"{articles}\n</body></html>\n"
    )


def _article(question: Question, prediction: Prediction, score: float) -> str:
    images = "".join(map(_thumbnail, question.images))
    rows = {
        "question": question.text,
        "reply": prediction.reply if prediction.error is None else f"could not be asked: {prediction.error}",
        "answers": " | ".join(dict.fromkeys(question.answers)),
        "score": f"{score:.2f}",
        "test, id": f"{question.test}, {question.id}",
    }
    terms = "".join(f"<dt>{name}</dt><dd>{_escaped(text)}</dd>" for name, text in rows.items())
    return f"<article><div>{images}</div><dl>{terms}</dl></article>"


def _thumbnail(source: ImageSource) -> str:
    """An inlined image of at most 256 px, or a note that it cannot be opened."""
    try:
        image = open_image(source)
    except ImageError as error:
        return f"<p>{_escaped(str(error))}</p>"
    small = image.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{data}">'


def _escaped(text: str) -> str:
    """Escape HTML; replace control characters and lone surrogates by U+FFFD."""
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
