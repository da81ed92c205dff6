"""Questions side by side are what each would be alone; looks stand where the answer's pieces are said."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.mini.conversation import IGNORED, Conversations, Encoded
from recipes.mini.dense import nothing_known
from recipes.mini.looks import (
    GUIDED_HEADS,
    GUIDED_LAYER,
    NEGATED_HEADS,
    REMINDED_LAYER,
    Gaze,
    by_piece,
    look_loss,
    pieces_of,
    tokens_of,
    tokens_of_all,
)
from recipes.mini.loop import to_pixels
from recipes.mini.mix import draw
from recipes.mini.train import LENGTH_POOL, Batch, Sample, collate, collate_by_length
from transformers import AutoTokenizer

import fastvlm
from fastvlm.demo_data.charts import draw_chart
from fastvlm.demo_data.looks import Look, looks_of, reminder_of
from fastvlm.demo_data.receipts import draw_receipt
from fastvlm.demo_data.scene import Scene, Thing
from fastvlm.demo_data.scene_questions import conversation
from fastvlm.demo_data.shapes import draw_shapes
from fastvlm.demo_data.text import draw_word
from fastvlm.demo_data.vocabulary import GLYPHS

MINI = Path(fastvlm.__file__).parent / "weights" / "mini"
TURNS = [("What color is the star?", "It is red."), ("How many shapes are there?", "3"), ("What is it?", "A red star.")]


@pytest.fixture(scope="module")
def talks() -> Conversations:
    return Conversations(AutoTokenizer.from_pretrained(MINI))


def batch_of(encoded: Encoded) -> Batch:
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    return collate([Sample(picture, encoded, nothing_known())])


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    output = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        pixel_values=to_pixels(batch.images),
    )
    result: torch.Tensor = output.logits[0]
    return result


def test_side_by_side_each_question_is_as_if_alone(talks: Conversations) -> None:
    model, _ = fastvlm.load("mini", device="cpu", dtype="float32", attn_implementation="eager")
    together = talks.side_by_side(TURNS, 999)
    all_logits, owners = logits(model, batch_of(together)), torch.tensor(together.turns)
    for number, turn in enumerate(TURNS, start=1):
        alone = logits(model, batch_of(talks.encode([turn], 999)))
        mine = all_logits[owners == number]
        torch.testing.assert_close(mine, alone[-len(mine) :], atol=1e-4, rtol=1e-4)


def test_a_talk_sees_what_was_said_before(talks: Conversations) -> None:
    encoded = talks.encode(TURNS, 999)
    mask = batch_of(encoded).mask[0, 0]
    assert torch.equal(mask == 0, torch.ones_like(mask).tril().bool())


def test_only_answers_are_learnt_and_lengths_agree(talks: Conversations) -> None:
    for encoded in (talks.encode(TURNS, 999), talks.side_by_side(TURNS, 999)):
        assert len(encoded.ids) == len(encoded.labels) == len(encoded.positions) == len(encoded.turns)
        learnt = [token for token, label in zip(encoded.ids, encoded.labels, strict=True) if label != IGNORED]
        assert talks._tokenizer.decode(learnt) == "".join(f"{answer}<|im_end|>\n" for _, answer in TURNS)


def test_too_many_questions_are_left_out(talks: Conversations) -> None:
    few = talks.side_by_side(TURNS, 1)
    assert max(few.turns) == 1


def test_gazes_stand_where_the_piece_is_said_next(talks: Conversations) -> None:
    question, answer = TURNS[0]
    word = question.rstrip("?").split()[-1]
    encoded = talks.side_by_side(TURNS, 999, [[Look(answer.index("red"), (5, 6), frozenset({word}))], [], []])
    reminded, guided = encoded.gazes
    assert talks._tokenizer.decode([encoded.ids[reminded.position + 1]]) == " red"
    assert (reminded.layer, guided.layer) == (REMINDED_LAYER, GUIDED_LAYER)
    assert reminded.position == guided.position
    assert "".join(talks._tokenizer.decode([encoded.ids[at]]) for at in reminded.seen).strip() == word
    assert {encoded.ids[at] for at in guided.seen} == {talks._tokenizer.convert_tokens_to_ids("<image>")}
    assert guided.seen[1] - guided.seen[0] == 1


def test_batches_of_like_length_hold_every_sample_once(talks: Conversations) -> None:
    picture = np.zeros((256, 256, 3), dtype=np.uint8)
    samples = [
        Sample(picture, talks.encode([("What is it?", "A" * (1 + 7 * n % 12))], 999), nothing_known())
        for n in range(2 * LENGTH_POOL)
    ]
    batches = collate_by_length(samples)
    lengths = [sorted((batch.labels != IGNORED).sum(1).tolist()) for batch in batches]
    assert [len(row) for row in lengths] == [2] * LENGTH_POOL
    assert list(chain(*lengths)) == sorted(sum(label != IGNORED for label in s.encoded.labels) for s in samples)


def two_shapes() -> Scene:
    scene = Scene(draw_shapes(Random(0), 1).image, "shapes")
    scene.things = [
        Thing("shape", "star", "red", 40, 40, 40),
        Thing("shape", "circle", "blue", 200, 220, 40),
    ]
    return scene


def test_the_asked_shape_is_looked_at() -> None:
    scene = two_shapes()
    star = looks_of(scene, ("What color is the star?", "It is red."))
    first, blue = looks_of(scene, ("What shape is blue?", "It is a circle."))
    assert star == [Look(at, (0,), frozenset({"star"})) for at in (0, 6)]
    assert blue == Look(8, tokens_of(scene.things[1]), frozenset({"blue"}))
    assert (first.start, first.tokens) == (0, blue.tokens) and 15 in blue.tokens
    assert looks_of(scene, ("Where is the star?", "top left")) == star[:1]
    assert looks_of(scene, ("How many shapes are there?", "2")) == []
    assert looks_of(scene, ("What color is the background?", "It is white.")) == []


def test_for_yes_or_no_only_what_fits_the_question_is_looked_at() -> None:
    scene = two_shapes()
    assert looks_of(scene, ("Is there a red star?", "Yes")) == [Look(0, (0,), frozenset({"red", "star"}))]
    assert looks_of(scene, ("Is there a blue star?", "No")) == [Look(0, (), frozenset({"blue", "star"}))]
    assert looks_of(scene, ("Is the red star above the blue circle?", "Yes")) == []
    assert reminder_of(("is there a grey shape?", "No")) == [Look(0, (), frozenset({"gray"}))]
    assert reminder_of(("is there not a circle?", "Yes")) == [Look(0, (), frozenset({"circle", "not"}))]


def test_a_negation_is_left_to_a_head_of_its_own(talks: Conversations) -> None:
    turn = ("is there not a red star?", "No")
    told, negated = talks.side_by_side([turn], 999, [reminder_of(turn)]).gazes
    assert (told.heads, negated.heads) == (GUIDED_HEADS, NEGATED_HEADS)
    assert told.position == negated.position
    assert not set(told.seen) & set(negated.seen)


def test_a_word_is_looked_at_letter_by_letter() -> None:
    scene = draw_word(Random(1), "train", "OAK")
    text = scene.lines[0].text
    looks = looks_of(scene, ("What does it say?", text))
    assert [look.start for look in looks] == [0, 1, 2, 3]
    assert looks[-1].tokens == looks[-2].tokens
    assert {look.words for look in looks} == {frozenset({"say"})}
    assert looks_of(scene, ("What color is the text?", "black")) == []
    for place, number in (("second", 1), ("last", 2)):
        look, end = looks_of(scene, (f"What is the {place} letter?", text[number]))
        assert look == Look(0, looks[number].tokens, frozenset({place}))
        assert end == Look(1, looks[number].tokens, frozenset({place}))


def test_drawn_pictures_give_looks_inside_of_the_picture() -> None:
    for index in range(30):
        scene, _ = draw("joint", index, {"shapes": 1})
        for thing in scene.things:
            tokens = tokens_of(thing)
            assert tokens
            assert all(0 <= token < 16 for token in tokens)


def test_looks_of_one_piece_are_joined() -> None:
    looks = [Look(0, (1,), frozenset({"say"})), Look(1, (2,)), Look(2, (5,)), Look(3, (5,))]
    assert by_piece(looks, "OAK", ["O", "AK"]) == {
        0: Look(0, (1,), frozenset({"say"})),
        1: Look(1, (2, 5)),
        2: Look(3, (5,)),
    }
    assert by_piece(looks, "5\N{EURO SIGN}", ["5", "\ufffd", "\ufffd"]) == {}


def test_what_is_not_there_is_only_reminded_of() -> None:
    turn = ("What color is the cross?", "There is no cross in the image.")
    assert looks_of(two_shapes(), turn) == [Look(0, (), frozenset({"color", "cross"}))]


def lines_of(scene: Scene, looks: list[Look], answer: str) -> str:
    """What stands at the middles of the tokens that looks name, of those characters that stand in one place alone."""
    glyphs = [thing for thing in scene.things if thing.kind == "glyph"]
    said = ""
    for look in looks:
        if not answer[look.start : look.start + 1].isspace() and look.start < len(answer):
            near = {thing.name for thing in glyphs if set(tokens_of(thing)) & set(look.tokens)}
            said += answer[look.start] if answer[look.start] in near else "?"
    return said


@given(st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_receipts_and_charts_are_looked_at_where_the_answer_is_written(seed: int) -> None:
    rng = Random(seed)
    scene = (draw_receipt, draw_chart)[seed % 2](rng, "train")
    read = [turn for turn in conversation(rng, scene) if looks_of(scene, turn) and turn[1][:2] not in ('{"', "Th")]
    for turn in read:
        looks, written = looks_of(scene, turn), "".join(turn[1].split())
        assert [look.start for look in looks] == sorted(look.start for look in looks)
        assert lines_of(scene, looks, turn[1]) == "".join(char for char in written if char in GLYPHS)
        assert looks[-1].start == len(turn[1]) and looks[-1].tokens, "the end is looked for where the last stands"


def test_the_values_of_a_json_answer_are_looked_at() -> None:
    scene = draw_receipt(Random(4), "train")
    receipt = scene.receipt
    assert receipt is not None
    answer = json.dumps({"shop": receipt.shop, "total": receipt.total}, ensure_ascii=False)
    looks = looks_of(scene, ("Give the shop and total as JSON.", answer))
    assert lines_of(scene, looks, answer).startswith(receipt.shop)
    assert {look.words for look in looks} == {frozenset({"shop", "total", "json"})}


def test_a_garment_is_looked_at_by_its_whole_name() -> None:
    scene = Scene(draw_shapes(Random(0), 1).image, "clothes")
    scene.things = [Thing("clothing", "shirt", "", 60, 128, 100), Thing("clothing", "T-shirt", "", 190, 128, 100)]
    looks = looks_of(scene, ("What do you see?", "A T-shirt and a shirt."))
    assert {look.start: look.tokens for look in looks} == {
        16: tokens_of(scene.things[0]),
        2: tokens_of(scene.things[1]),
    }


def test_counting_reads_nothing() -> None:
    scene = draw_chart(Random(2), "train")
    assert looks_of(scene, ("How many bars are there?", "3")) == []


def test_a_word_of_several_pieces_is_found_in_a_question() -> None:
    pieces = ["What", " colour", " is", " the", " cro", "ss", "?"]
    assert pieces_of(frozenset({"cross"}), pieces) == [4, 5]
    assert pieces_of(frozenset({"gray"}), ["Is", " it", " grey", "?"]) == [2]
    assert pieces_of(frozenset(), pieces) == []


def test_the_look_loss_falls_with_attention_on_the_right_tokens() -> None:
    attentions = [torch.full((1, 4, 8, 8), 1e-6) for _ in range(GUIDED_LAYER + 1)]
    gazes = [[Gaze(GUIDED_LAYER, 7, (3, 4)), Gaze(REMINDED_LAYER, 7, (6,))]]
    lost = look_loss(attentions, gazes)
    attentions[GUIDED_LAYER][0, GUIDED_HEADS, 7, 3:5] = 0.5
    half = look_loss(attentions, gazes)
    attentions[REMINDED_LAYER][0, GUIDED_HEADS, 7, 6] = 1.0
    assert float(look_loss(attentions, gazes)) < 1e-3 < float(half) < float(lost)
    assert float(look_loss(attentions, [[]])) == 0.0


def test_a_share_that_is_all_but_nothing_is_still_pulled_up() -> None:
    scores = torch.zeros(1, 4, 8, 8)
    scores[..., 3] = -80.0
    scores.requires_grad_()
    attentions = [scores.softmax(-1)] * (GUIDED_LAYER + 1)
    look_loss(attentions, [[Gaze(GUIDED_LAYER, 7, (3,))]]).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert float(scores.grad[0, GUIDED_HEADS, 7, 3].sum()) < -0.5
