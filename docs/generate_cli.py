"""Write docs/cli.md from the command's own ``--help`` pages.

python docs/generate_cli.py          write it
python docs/generate_cli.py --check  exit with 1 if it is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from fastvlm.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 88
HEAD = """\
# The command line

<!-- Made by docs/generate_cli.py from the --help pages; a test checks that it has not drifted. -->

`fastvlm VERB ...`, or `python -m fastvlm VERB ...`. Answers go to stdout; talk (progress, a summary of timings) goes to
stderr, and only if that is a terminal. `NO_COLOR` is respected.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | the work failed: a damaged image or checkpoint, no network, a bug (`--debug` shows where) |
| 2 | bad use: an unknown flag, a missing image file, an impossible size, a prompt longer than the context |
| 130 | stopped by Ctrl-C |
| 141 | the reader of the output went away, as in `fastvlm ask ... \\| head -c 1` |

Every error is one line on stderr: `fastvlm: error: ...`.

`fastvlm --install-completion` makes the Tab key complete verbs and flags in new terminals (bash, zsh, fish,
PowerShell); `--show-completion` prints the script instead.
"""
JSON = """\
## `ask --json`

One object on one line:

| key | content |
| --- | --- |
| `model` | the checkpoint, as it was named |
| `answer` | the text, without white space around it |
| `usage` | `prompt_tokens`; of these `image_tokens`, and `cached_prompt_tokens`, known from a question before; \
`completion_tokens`, the end token included |
| `finish_reason` | `stop`: the model ended its answer; `length`: cut after `--max-new-tokens` |
| `timings_ms` | milliseconds, see below |
| `tokens_per_second` | decoding, after the first token; null for a single token |
| `images` | of each image: `source`, `kind` (image, frame, page), `number`, `count`, `time_s` of a video |

With `--each`, one such object a line for each image, in the order given, with its `source`; one that failed has only
`model`, `source` and `error`. `timings_ms` then includes the time that requests wait for each other.

`timings_ms`: `load` is opening the model, imports included; the others are measured with the model open.

| key | from, to |
| --- | --- |
| `preprocess` | from image bytes to tensors; with a URL, from the request |
| `encode` | encoder and projector |
| `prefill` | the decoder's first pass, to the first token |
| `ttft` | from image bytes to the first text that can be shown; null if there is none |
| `total` | from image bytes to the last token |
"""
WATCH_JSON = """\
## `watch --json`

One object a line for each answer: the keys of `ask --json` without `model` and `images`, and these.

| key | content |
| --- | --- |
| `time` | when the answer was complete, in UTC |
| `frame` | the frame's number in the source, from 1 |
| `time_s` | seconds since the first frame of a video, or since another source was opened |
| `file` | the image's name in a folder; null for other sources |
| `latency_ms` | milliseconds from the frame's arrival to the complete answer |
| `dropped` | frames so far that came and went while answers were made |
| `is_triggered` | true if the command of `--run` is run for this answer |

The command of `--run` gets the same line in its stdin, and `FASTVLM_ANSWER`, `FASTVLM_TIME`, `FASTVLM_FRAME`,
`FASTVLM_TIME_S`, `FASTVLM_FILE` and `FASTVLM_LATENCY_MS` in its environment. What it prints goes to stderr.
"""
BENCH_JSON = """\
## `bench --json`

The last line that `bench` prints, with `--json` the only one: one object.

| key | content |
| --- | --- |
| `model` | `name`, `is_random`, `parameters` |
| `settings`, `command`, `image_px` | what was asked for |
| `environment` | CPU, cores, instruction sets, memory, versions, commit, load average before the run |
| `rounds`, `seconds` | rounds that were made, and what the whole took |
| `measures` | a list: `measure`, `contestant`, `case`, `unit`, `median`, `quartiles`, `range`, `samples`, `parts` |
| `ratios` | of medians; above 1 fastvlm is better; null where not measured |
| `ratio_ranges` | smallest and largest ratio of a single round |
| `not_measured` | why a ratio is null |
| `roofline` | `peaks` of this machine in this run (FLOP/s, bytes/s), and `fractions` of them that were reached |
| `agreement` | how far the contestants' features are apart, how many first tokens are the same |
| `failures` | contestants and commands that failed, each with one line |
"""


def render() -> str:
    """The whole page."""
    command = typer.main.get_command(app)
    blocks = [HEAD]
    with command.make_context("fastvlm", [], terminal_width=WIDTH, max_content_width=WIDTH) as root:
        blocks.append(f"## `fastvlm`\n\n```text\n{command.get_help(root)}\n```\n")
        for name, verb in command.commands.items():
            with verb.context_class(verb, info_name=name, parent=root, terminal_width=WIDTH) as context:
                blocks.append(f"## `fastvlm {name}`\n\n```text\n{verb.get_help(context)}\n```\n")
    return "\n".join([*blocks, JSON, WATCH_JSON, BENCH_JSON])


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    page = render()
    if "--check" in arguments:
        return int(PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
