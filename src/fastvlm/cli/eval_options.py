"""Options of `fastvlm eval`, in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastvlm.cli.options import grouped_option as _option

_QUESTIONS, _ASKING, _RESULTS = "Questions", "Asking", "Results"

Suite = Annotated[
    str | None, _option(_QUESTIONS, "--suite", metavar="NAME", text="mini: 380 questions that come with the package.")
]
Task = Annotated[
    str | None,
    _option(
        _QUESTIONS,
        "--task",
        metavar="NAME",
        text="vqav2, textvqa, docvqa, infovqa, chartqa, gqa, pope, seed, mmmu, scienceqa, ai2d, captions, or plain: "
        "our own JSON Lines.",
    ),
]
Data = Annotated[
    Path | None,
    _option(_QUESTIONS, "--data", metavar="PATH", text="The benchmark's own file, or its folder; docs/evaluate.md."),
]
Images = Annotated[
    Path | None,
    _option(_QUESTIONS, "--images", metavar="FOLDER", text="Its images, if not where the benchmark itself has them."),
]
Annotations = Annotated[
    Path | None,
    _option(_QUESTIONS, "--annotations", metavar="FILE", text="VQAv2's answers, if not next to its questions."),
]
Limit = Annotated[
    int | None, _option(_QUESTIONS, "--limit", metavar="N", text="At most N questions a test, drawn with --seed.")
]
Check = Annotated[bool, _option(_QUESTIONS, "--check", text="Read everything, report what is wrong, and ask nothing.")]
SkipBad = Annotated[
    bool, _option(_QUESTIONS, "--skip-bad", text="Leave out records that cannot be asked; they are named and counted.")
]
Metric = Annotated[
    str | None,
    _option(
        _ASKING,
        "--metric",
        metavar="NAME",
        text="For plain: exact, vqa, anls, relaxed, choice, yes-no, cer or cider.  [default: exact]",
    ),
]
Hint = Annotated[
    str | None,
    _option(
        _ASKING, "--hint", metavar="TEXT", text="Last line of every question in place of the task's own; '' is none."
    ),
]
Blind = Annotated[
    bool | None,
    _option(
        _ASKING,
        "--blind/--no-blind",
        text="Also ask about a gray image: what needs no seeing. On for the mini suite, where --no-blind saves time.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    _option(
        _ASKING, "--max-new-tokens", "-n", metavar="N", text="Tokens after which a reply is cut, if not the task's own."
    ),
]
Temperature = Annotated[
    float, _option(_ASKING, "--temperature", metavar="T", text="0 takes the likeliest token; higher is more varied.")
]
Seed = Annotated[
    int,
    _option(_ASKING, "--seed", metavar="SEED", text="Of drawn questions, drawn tokens, and the worst among equals."),
]
Slots = Annotated[int, _option(_ASKING, "--slots", metavar="N", text="Replies made at the same time.")]
Bits = Annotated[int, _option(_ASKING, "--bits", metavar="BITS", text="Of the decoder's weights on a CPU: 16, 8 or 4.")]
Out = Annotated[
    Path | None,
    _option(
        _RESULTS,
        "--out",
        metavar="FOLDER",
        text="Write predictions.jsonl, summary.json and worst.html there, and resume an earlier run.",
    ),
]
Restart = Annotated[bool, _option(_RESULTS, "--restart", text="Delete an earlier run's results in --out.")]
Worst = Annotated[int, _option(_RESULTS, "--worst", metavar="N", text="Questions on the page of the worst.")]
