"""Questions side by side are what each would be alone; looks stand where the answer's pieces are said."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from recipes.mini.conversation import IGNORED, Conversations, Encoded
from recipes.mini.drawing.dense import nothing_known
from recipes.mini.drawing.mix import draw
from recipes.mini.drawing.scene import Scene, Thing
from recipes.mini.drawing.shapes import draw_shapes
from recipes.mini.drawing.text import draw_word
from recipes.mini.looks import GUIDED_HEADS, Look, guided, look_loss, looks_of, tokens_of
from recipes.mini.loop import to_pixels
from recipes.mini.train import Batch, Sample, collate
from transformers import AutoTokenizer

import fastvlm

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


def test_looks_stand_where_the_piece_is_said_next(talks: Conversations) -> None:
    looks = [[Look(" red", (5, 6))], [], []]
    encoded = talks.side_by_side(TURNS, 999, looks)
    ((position, tokens),) = encoded.looks
    assert talks._tokenizer.decode([encoded.ids[position + 1]]) == " red"
    assert tokens == (5, 6)


def test_the_asked_shape_is_looked_at() -> None:
    scene = Scene(draw_shapes(Random(0), 1).image, "shapes")
    scene.things = [
        Thing("shape", "star", "red", 40, 40, 40),
        Thing("shape", "circle", "blue", 200, 220, 40),
    ]
    (star,) = looks_of(scene, ("What color is the star?", "It is red."))
    (blue,) = looks_of(scene, ("What shape is blue?", "It is a circle."))
    assert star == Look(" red", (0,))
    assert blue == Look(" circle", tokens_of(scene.things[1]))
    assert 15 in blue.tokens
    assert looks_of(scene, ("How many shapes are there?", "2")) == []
    assert looks_of(scene, ("What color is the background?", "It is white.")) == []


def test_a_word_is_looked_at_letter_by_letter() -> None:
    scene = draw_word(Random(1), "train", "OAK")
    looks = looks_of(scene, ("What does it say?", scene.lines[0].text))
    assert [look.text for look in looks] == list(scene.lines[0].text)
    assert looks_of(scene, ("What color is the text?", "black")) == []


def test_drawn_pictures_give_looks_inside_of_the_picture() -> None:
    for index in range(30):
        scene, _ = draw("joint", index, {"shapes": 1})
        for thing in scene.things:
            tokens = tokens_of(thing)
            assert tokens
            assert all(0 <= token < 16 for token in tokens)


def test_pieces_are_matched_in_order() -> None:
    looks = [Look("O", (1,)), Look("O", (2,))]
    assert guided(looks, ["O", "O", "K"]) == [(0, (1,)), (1, (2,))]
    assert guided(looks, ["O", "K"]) == []


def test_the_look_loss_falls_with_attention_on_the_right_tokens() -> None:
    attention = torch.full((1, 4, 8, 8), 1e-6)
    looks = [[(7, (2, 3))]]
    lost = look_loss(attention, looks, first_visual=1)
    attention[0, :GUIDED_HEADS, 7, 3:5] = 0.5  # visual tokens 2 and 3 stand at 3 and 4
    found = look_loss(attention, looks, first_visual=1)
    assert float(found) < 1e-3 < float(lost)
    assert float(look_loss(attention, [[]], 1)) == 0.0
