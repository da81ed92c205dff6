"""One decoding step: computes the newest token and the drafted tokens of each reply, then samples the next ones.

B rows: one for each of these tokens; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastvlm.backends.backend import Backend
from fastvlm.engine.sampling import StepSampler
from fastvlm.engine.sequence import SequenceState
from fastvlm.engine.types import TokenEvent
from fastvlm.model import finite


@dataclass(frozen=True)
class Run:
    """The consecutive tokens of one reply in a step: its newest token, then drafted ones; none after its prompt."""

    reply: SequenceState
    token_ids: Sequence[int] = ()

    @property
    def drafted(self) -> Sequence[int]:
        """The tokens that the model has not confirmed yet."""
        return self.token_ids[1:]


def decode(backend: Backend, replies: Sequence[SequenceState]) -> tuple[list[Run], Tensor]:
    """The runs of `replies`, and the logits (B, V) after each of their tokens."""
    runs = [Run(reply, reply.inputs()) for reply in replies]
    token_ids = [token_id for run in runs for token_id in run.token_ids]
    slots = [run.reply.slot for run in runs for _ in run.token_ids]
    positions = [run.reply.position + index for run in runs for index in range(len(run.token_ids))]
    return runs, backend.decode(token_ids, slots, positions)


def sample(runs: Sequence[Run], logits: Tensor) -> list[list[TokenEvent]]:
    """The events of each run, from its rows of `logits` (B, V): one for each of its tokens that holds, or its error.

    A row is sampled only if all drafted tokens up to it are those that have been sampled, so a reply, its random draws
    and its grammar are the same without drafts. NaN in a row that is needed ends the reply with NonFiniteError.
    """
    sampler, row, events = StepSampler(logits), 0, []
    for run in runs:
        events.append(_sample_run(run, sampler, row))
        row += max(1, len(run.token_ids))
    return events


def _sample_run(run: Run, sampler: StepSampler, row: int) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    for index in range(max(1, len(run.token_ids))):
        if not sampler.is_finite[row + index]:
            return [*events, run.reply.aborted(finite.non_finite_logits())]
        sampled = sampler.pick(row + index, run.reply.sampler)
        event = run.reply.append(sampled)
        events.append(event)
        if event.finish_reason is not None or run.drafted[index : index + 1] != [sampled.token_id]:
            break
    if run.reply.drafter is not None and run.drafted:
        held = zip(events, run.drafted, strict=False)
        run.reply.drafter.verified(sum(event.token_id == drafted for event, drafted in held))
    return events
