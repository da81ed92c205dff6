"""`fastvlm eval` asks and scores the mini's questions as the recipe does, which asks `generate`."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastvlm
from fastvlm.evaluation.layouts.plain import mini_place, read_plain
from fastvlm.evaluation.metrics.table import METRICS
from fastvlm.evaluation.metrics.text_match import exact_match, judge_characters
from fastvlm.evaluation.questions import Question
from fastvlm.evaluation.run.benchmark_run import run
from fastvlm.evaluation.run.runner import GenerationOptions
from fastvlm.evaluation.tasks import MINI
from fastvlm_recipes.mini import scoring
from fastvlm_recipes.mini.benchmark import Item
from fastvlm_recipes.mini.evaluate import ask, blind_answers

WORDS = st.text(st.characters(codec="ascii", categories=("Ll", "Lu", "Nd", "Po", "Zs")), max_size=24)


def test_replies_scores_and_blind_scores_are_the_same():
    questions = read_plain(mini_place()).questions[5:200:32]
    items = [Item(fastvlm.open_image(q.images[0]), q.text, q.answers) for q in questions]
    model, processor = fastvlm.load("mini", device="cpu", dtype="float32")
    expected, accepted = ask(model, processor, items), [q.answers for q in questions]
    blind = scoring.score(blind_answers(lambda some: ask(model, processor, some), items), accepted).share
    engine = fastvlm.Engine.from_model(model, processor, num_slots=3)
    result = run(
        engine,
        [replace(q, test="all") for q in questions],
        METRICS["exact"],
        GenerationOptions("", MINI.max_new_tokens),
        is_blind=True,
    )
    assert [result.seen[q.id].reply for q in questions] == expected
    (row,) = result.rows
    assert row.score == pytest.approx(scoring.score(expected, accepted).share) and row.blind == pytest.approx(blind)


@given(WORDS, WORDS)
def test_exact_match_is_the_same(reply, answer):
    assert exact_match(reply, Question("1", "t", "?", (), (answer,), ())) == float(scoring.is_right(reply, [answer]))


def test_character_error_rate_is_the_same():
    replies, answers = ["cat", "dug", ""], ["CAT", "dog", "four"]
    judged = judge_characters(replies, [Question("1", "t", "?", (), (answer,), ()) for answer in answers])
    assert judged.score == pytest.approx(scoring.character_error_rate(replies, answers)) == pytest.approx(5 / 10)
