"""Questions side by side are what each would be alone; looks stand where the answer's pieces are said."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from fastvlm.demo_data.looks import Look, reminder_of
from fastvlm.demo_data.scene import Thing

MINI = Path(fastvlm.__file__).parent / "weights" / "mini"
THINGS = tuple(Thing("glyph", name, "", x, 100.0, 20.0) for name, x in (("O", 30.0), ("A", 100.0), ("K", 160.0)))
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
    encoded = talks.side_by_side(TURNS, 999, [[Look(answer.index("red"), THINGS, frozenset({word}))], [], []])
    reminded, guided = encoded.gazes
    assert talks._tokenizer.decode([encoded.ids[reminded.position + 1]]) == " red"
    assert (reminded.layer, guided.layer) == (REMINDED_LAYER, GUIDED_LAYER)
    assert reminded.position == guided.position
    assert "".join(talks._tokenizer.decode([encoded.ids[at]]) for at in reminded.seen).strip() == word
    assert {encoded.ids[at] for at in guided.seen} == {talks._tokenizer.convert_tokens_to_ids("<image>")}
    assert guided.seen == tuple(talks._first_visual + token for token in tokens_of_all(THINGS))


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


def test_a_negation_is_left_to_a_head_of_its_own(talks: Conversations) -> None:
    turn = ("is there not a red star?", "No")
    told, negated = talks.side_by_side([turn], 999, [reminder_of(turn)]).gazes
    assert (told.heads, negated.heads) == (GUIDED_HEADS, NEGATED_HEADS)
    assert told.position == negated.position
    assert not set(told.seen) & set(negated.seen)


def test_drawn_pictures_give_looks_inside_of_the_picture() -> None:
    for index in range(30):
        scene, _ = draw("joint", index, {"shapes": 1})
        for thing in scene.things:
            tokens = tokens_of(thing)
            assert tokens
            assert all(0 <= token < 16 for token in tokens)


def test_looks_of_one_piece_are_joined() -> None:
    one, two, three = THINGS
    looks = [Look(0, (one,), frozenset({"say"})), Look(1, (two,)), Look(2, (three,)), Look(3, (three,))]
    assert by_piece(looks, "OAK", ["O", "AK"]) == {
        0: Look(0, (one,), frozenset({"say"})),
        1: Look(1, (two, three)),
        2: Look(3, (three,)),
    }
    assert by_piece(looks, "5\N{EURO SIGN}", ["5", "\ufffd", "\ufffd"]) == {}


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
