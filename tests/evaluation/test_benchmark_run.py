"""A run that is stopped goes on where it was; what it keeps is whole; another run's folder is refused."""

import errno
import json
import os
from dataclasses import replace

import layouts
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runner import Echo, asked

from fastvlm.errors import DataError, UsageError
from fastvlm.evaluation.layouts.plain import MINI_QUESTIONS, mini_place, read_plain
from fastvlm.evaluation.layouts.reading import Place
from fastvlm.evaluation.metrics.table import METRICS
from fastvlm.evaluation.run.benchmark_run import run
from fastvlm.evaluation.run.predictions import Prediction, PredictionFile
from fastvlm.evaluation.run.run_folder import claim_folder, questions_digest
from fastvlm.evaluation.run.runner import GenerationOptions
from fastvlm.formats.checkpoint_digest import checkpoint_digest

EXACT = METRICS["exact"]
QUESTIONS = asked("say one", "say two", "say three", "say four", "say five")


class StoppedError(Exception):
    pass


class Fragile(Echo):
    """Stops when it has given so many replies, or one more."""

    def __init__(self, after):
        super().__init__(num_slots=2)
        self.left = after

    def step(self):
        if self.left <= 0:
            raise StoppedError
        events = super().step()
        self.left -= sum(event.finish_reason is not None for event in events)
        return events


def lines(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("after", range(4))
def test_a_run_goes_on_where_it_was_stopped(tmp_path, after):
    with pytest.raises(StoppedError):
        run(Fragile(after), QUESTIONS, EXACT, GenerationOptions(), folder=tmp_path)
    done = len(lines(tmp_path))
    assert after <= done <= after + 1
    engine = Echo()
    result = run(engine, QUESTIONS, EXACT, GenerationOptions(), folder=tmp_path)
    assert len(engine.asked) == 5 - done and result.num_kept == done and result.num_asked == 5 - done
    assert {row["id"]: row["reply"] for row in lines(tmp_path)} == dict(
        zip("01234", ["one", "two", "three", "four", "five"], strict=True)
    )
    assert len(lines(tmp_path)) == 5


@given(st.integers(0, 400))
def test_a_half_line_is_cut_off_and_asked_again(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    whole = run(Echo(), QUESTIONS, EXACT, GenerationOptions(), folder=folder).seen
    file = folder / "predictions.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: max(0, len(data) - cut)])
    kept = data[: max(0, len(data) - cut)].count(b"\n")
    result = run(Echo(), QUESTIONS, EXACT, GenerationOptions(), folder=folder)
    assert result.seen == whole and result.num_kept == kept
    assert sorted(row["id"] for row in lines(folder)) == list("01234")
    assert (result.num_cut_bytes > 0) == (not data[: max(0, len(data) - cut)].endswith(b"\n") and cut < len(data))


def test_failures_are_kept_and_asked_again(tmp_path):
    questions = asked("one", "unaskable two")
    first = run(Echo(), questions, EXACT, GenerationOptions(), folder=tmp_path)
    assert first.seen["1"].error and first.rows[0].num_failed == 1 and first.rows[0].score == 0
    second = run(Echo(), [questions[0], replace(questions[1], text="two")], EXACT, GenerationOptions(), folder=tmp_path)
    assert second.num_kept == 1 and second.seen["1"].reply == "two"


def test_a_line_that_is_no_prediction_is_told(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "1", "reply": "x", "finish_reason": "stop", "error": null}\nrubbish\n')
    with pytest.raises(DataError, match="line 2 is not a prediction"), PredictionFile(tmp_path / "p.jsonl"):
        pass


def test_replies_of_any_characters_survive(tmp_path):
    said = Prediction("1", 'a\u2028b "c"\n\ud800é', "stop")
    with PredictionFile(tmp_path / "p.jsonl") as file:
        file.add(said, {"question": "?"})
    with PredictionFile(tmp_path / "p.jsonl") as file:
        assert file.known["1"].reply == said.reply.replace("\ud800", "?")


@pytest.mark.parametrize("room", [None, 9])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(tmp_path, monkeypatch, room):
    write, left = os.write, [1]

    def full(handle, data):
        if left[0]:
            left[0] -= 1
            return write(handle, data)
        if room is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:room])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match=r"cannot be written to .* the same command again"):
        run(Echo(), QUESTIONS, EXACT, GenerationOptions(), folder=tmp_path)
    monkeypatch.undo()
    result = run(Echo(), QUESTIONS, EXACT, GenerationOptions(), folder=tmp_path)
    assert result.num_kept == 1 and len(lines(tmp_path)) == 5 and result.num_cut_bytes == (room or 0)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    result = run(
        Echo(), QUESTIONS, EXACT, GenerationOptions(), is_blind=True, on_progress=lambda *now: seen.append(now)
    )
    assert list(tmp_path.iterdir()) == [] and len(result.seen) == 5
    assert seen[0] == ("questions", 0, 5) and seen[5] == ("questions", 5, 5) and seen[-1] == ("gray images", 5, 5)


def test_each_distinct_question_is_asked_blind_once(tmp_path):
    questions = asked("say one", "say one", "say two")
    engine = Echo()
    result = run(engine, questions, EXACT, GenerationOptions(), folder=tmp_path, is_blind=True)
    assert len(engine.asked) == 3 + 2 and result.num_asked == 5
    assert result.blind == {"0": "one", "1": "one", "2": "two"}
    assert len(lines(tmp_path, "blind.jsonl")) == 2
    again = Echo()
    run(again, questions, EXACT, GenerationOptions(), folder=tmp_path, is_blind=True)
    assert again.asked == []


def test_nothing_to_ask_is_one_line():
    with pytest.raises(UsageError, match="no questions to ask"):
        run(Echo(), [], EXACT, GenerationOptions())


def test_a_folder_belongs_to_one_run(tmp_path):
    ours = {"model": "mini", "questions": questions_digest(QUESTIONS)}
    claim_folder(tmp_path / "a", ours)
    claim_folder(tmp_path / "a", ours)
    with pytest.raises(UsageError, match="model 'mini', now 'other'"):
        claim_folder(tmp_path / "a", {**ours, "model": "other"})
    (tmp_path / "a" / "predictions.jsonl").write_text("")
    claim_folder(tmp_path / "a", {**ours, "model": "other"}, is_restart=True)
    assert not (tmp_path / "a" / "predictions.jsonl").exists()
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(UsageError, match="another run"):
        claim_folder(tmp_path / "a", ours)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "predictions.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"no run\.json"):
        claim_folder(tmp_path / "b", ours)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        claim_folder(tmp_path / "file" / "c", ours)


def test_digests_see_what_changes(tmp_path):
    assert questions_digest(QUESTIONS) != questions_digest(asked("say one"))
    assert questions_digest(QUESTIONS) == questions_digest(list(QUESTIONS))
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "README.md").write_text("x")
    before = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("y")
    assert checkpoint_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(bytes(1_500_000) + b"\1" * 1_500_000)
    assert checkpoint_digest(tmp_path) != before


def test_the_minis_questions_come_with_the_package():
    reading = read_plain(mini_place())
    assert len(reading.questions) == 380 and not reading.bad
    assert MINI_QUESTIONS.is_relative_to(layouts_home := MINI_QUESTIONS.parents[1]) and layouts_home.name == "fastvlm"
    assert sum(file.stat().st_size for file in MINI_QUESTIONS.iterdir()) < 2_000_000


def test_an_image_that_breaks_after_reading_is_a_failure(tmp_path):
    file = layouts.plain(tmp_path)
    questions = read_plain(Place(file)).questions
    (tmp_path / "red.png").write_bytes(b"no image")
    result = run(Echo(), questions, EXACT, GenerationOptions())
    assert all("not an image that can be opened" in one.error for one in result.seen.values())


def test_answers_that_the_metric_cannot_judge_are_told_before_anything_is_asked(tmp_path):
    engine = Echo()
    with pytest.raises(DataError, match=r"5 of 5 questions do not fit the metric; the first: the question '0'"):
        run(engine, QUESTIONS, METRICS["yes-no"], GenerationOptions(), folder=tmp_path)
    assert engine.asked == [] and list(tmp_path.iterdir()) == []
