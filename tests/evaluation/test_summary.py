"""Rows, the summary, the authors' figures and the page of the worst."""

import json

import layouts
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.evaluation.metrics.table import METRICS
from fastvlm.evaluation.questions import Question
from fastvlm.evaluation.run.benchmark_run import Result
from fastvlm.evaluation.run.predictions import Prediction
from fastvlm.evaluation.run.published_figures import published_figures
from fastvlm.evaluation.run.scores import Row, draw_sample, mean_row, refusal_rows, score_tests
from fastvlm.evaluation.run.summary import as_table, summary
from fastvlm.evaluation.run.worst_page import worst_cases, worst_page
from fastvlm.evaluation.tasks import TASKS

EXACT = METRICS["exact"]


def question(identity, answer, test="t", **more):
    return Question(identity, test, more.pop("text", f"question {identity}"), more.pop("images", ()), (answer,), **more)


def said(**replies):
    return {identity: Prediction(identity, reply, "stop") for identity, reply in replies.items()}


def test_rows_by_hand():
    questions = [question("a", "Yes"), question("b", "yes"), question("c", "no"), question("d", "red", "other")]
    seen = said(a="yes", b="no", c="no", d="Red.") | {"c": Prediction("c", "", "error", "broken image")}
    first, second = score_tests(questions, seen, {"a": "yes", "b": "yes", "c": "yes", "d": "blue"}, EXACT)
    assert (first.test, first.n, first.num_failed) == ("t", 3, 1)
    assert (first.score, first.blind, first.majority) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    assert first.each == (1, 0, 0) and first.interval[0] < 1 / 3 < first.interval[1]
    assert (second.score, second.blind, second.majority) == (1, 0, 1)
    assert score_tests(questions, seen, None, EXACT)[0].blind is None


def test_together_each_test_counts_alike():
    rows = [Row("x", 10, 0.5, blind=0.1, majority=0.2), Row("y", 1000, 0.7, blind=0.3, majority=0.4)]
    row = mean_row("both", rows)
    assert (row.n, row.interval) == (1010, None)
    assert (row.score, row.blind, row.majority) == pytest.approx((0.6, 0.2, 0.3))
    assert mean_row("both", [*rows, Row("z", 1, 0.6)]).blind is None


def test_refusals():
    questions = [question("a", "There is no text."), question("b", "There is no star."), question("c", "red")]
    seen, blind = (
        said(a="There is no text.", b="a star", c="there is no circle"),
        {"a": "x", "b": "x", "c": "There is no"},
    )
    refused, false = refusal_rows(questions, seen, blind)
    assert (refused.test, refused.n, refused.score, refused.blind) == ("unanswerable_refused", 2, 0.5, 0)
    assert (false.test, false.n, false.score, false.blind) == ("false_refusals", 1, 1, 1)
    assert refusal_rows(questions[2:], seen, blind) == []


@given(st.integers(1, 12), st.integers(0, 3))
def test_a_sample_is_the_same_for_a_seed_and_in_order(limit, seed):
    questions = [question(str(number), "x", test="abc"[number % 3]) for number in range(30)]
    sample = draw_sample(questions, limit, seed)
    assert sample == draw_sample(questions, limit, seed) and len(sample) == 3 * min(limit, 10)
    assert sample == [q for q in questions if q in sample]
    assert draw_sample(questions, None, seed) == questions


def result_of(rows, seen):
    return Result(rows=rows, seen=seen, blind=None, num_kept=1, num_cut_bytes=0, seconds=2.0, num_asked=3)


def test_the_summary_is_json_and_the_table_has_it_all():
    seen = said(a="x", b="y") | {"c": Prediction("c", "", "error", "?"), "d": Prediction("d", "x", "length")}
    rows = [Row("t", 4, 1 / 3, (0.1, 0.6), 0.2, 0.3, {"yes_ratio": 0.5}, 1), Row("u", 1, float("nan"))]
    content = summary({"task": "pope"}, result_of(rows, seen), rows, METRICS["yes-no"], published_figures("", "pope"))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["scores"] == {"t": 0.3333, "u": None} and content["blind"] == {"t": 0.2} and content["n"]["t"] == 4
    assert content["majority"] == {"t": 0.3} and content["intervals"] == {"t": [0.1, 0.6]}
    assert (content["failed"], content["cut_off"], content["resumed"], content["questions_per_s"]) == (1, 1, 1, 1.5)
    table = as_table(rows[:1], METRICS["yes-no"], published_figures("apple/FastVLM-0.5B", "seed"))
    assert "| t | 4 | 33.3 | 10.0-60.0 | 20.0 | 30.0 | yes ratio 50.0 %, 1 could not be asked |" in table
    assert "Published: 71.0 % (model card of apple/FastVLM-0.5B)" in table
    assert "| t | 4 | 0.333 |" in as_table(rows[:1], METRICS["cider"], [])


@pytest.mark.parametrize(
    ("model", "task", "scores"),
    [
        ("llava-fastvithd_0.5b_stage3", "textvqa", [0.658]),
        ("/models/llava-fastvithd_7b_stage2", "docvqa", [0.827]),
        ("llava-fastvithd_1.5b_stage3", "chartqa", [0.695]),
        ("apple/FastVLM-1.5B", "ai2d", [0.774]),
        ("apple/FastVLM-7B", "pope", []),
        ("mini", "pope", []),
        ("llava-fastvithd_0.5b_stage3-mine", "textvqa", []),
        ("apple/FastVLM-0.5B", "mini", []),
    ],
)
def test_published_figures(model, task, scores):
    found = published_figures(model, task)
    assert [figure.score for figure in found] == scores
    assert all("arXiv" in figure.source or "card" in figure.source for figure in found)


def test_tasks_have_known_metrics():
    for name, task in TASKS.items():
        assert task.name == name and task.metric in METRICS and task.max_new_tokens > 0


def test_the_worst_cases_are_the_worst():
    questions = [question(str(number), "x" if number < 20 else "y", test="ab"[number % 2]) for number in range(40)]
    seen = said(**{q.id: "x" for q in questions})
    rows = score_tests(questions, seen, None, EXACT)
    cases = worst_cases(questions, seen, rows, 12, seed=1)
    assert len(cases) == 12 and all(score == 0 and question.answers == ("y",) for question, _, score in cases)
    assert cases == worst_cases(questions, seen, rows, 12, seed=1) != worst_cases(questions, seen, rows, 12, seed=2)
    assert worst_cases(questions[:20], seen, score_tests(questions[:20], seen, None, EXACT), 12) == []


def test_the_page_stands_alone_and_runs_nothing(tmp_path):
    evil = '<script>alert("1")</script>\x00'
    images = (layouts.image_file(tmp_path / "red.png"), layouts.png(), tmp_path / "gone<b>.png")
    questions = [question("a<i>", evil, text=evil, images=images, test="<t>"), question("b", "x", test="<t>")]
    seen = {"a<i>": Prediction("a<i>", evil, "stop"), "b": Prediction("b", "", "error", "<img src=x>")}
    cases = worst_cases(questions, seen, [Row("<t>", 2, 0.0, each=(0, 0))], 10)
    page = worst_page("a <title>", cases, 2)
    assert "<script" not in page and "<img src=x" not in page and "<b>" not in page and "\x00" not in page
    assert page.count('src="data:image/jpeg;base64,') == 2 and "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page and "&lt;script&gt;" in page and "could not be asked" in page
    assert "Every reply is right" in worst_page("t", [], 2)
