"""Questions about a scene of any kind with true answers: (question, answer) pairs."""

from __future__ import annotations

from random import Random

from fastvlm_recipes.demo_data.chart_questions import chart_turns
from fastvlm_recipes.demo_data.clothes import clothes_turns
from fastvlm_recipes.demo_data.emoji_questions import emoji_turns
from fastvlm_recipes.demo_data.receipt_questions import receipt_turns
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.shape_questions import shape_turns
from fastvlm_recipes.demo_data.text_questions import text_turns
from fastvlm_recipes.demo_data.trap_questions import false_premise, no_shape_turn, no_text_turn, twin
from fastvlm_recipes.demo_data.wording import Turn

MOST_TURNS = 5
FALSE_PREMISES, TWINS = 0.22, 0.1  # shares of images with such a question


def turns_of(rng: Random, scene: Scene) -> list[Turn]:
    """The first edition's questions, in the order to ask them; one scene in eight gets one without an answer."""
    if scene.topic == "shapes":
        turns, trap = shape_turns(rng, scene), no_text_turn(rng)
    elif scene.topic == "emoji":
        turns, trap = emoji_turns(rng, scene), rng.choice((no_text_turn, no_shape_turn))(rng)
    else:
        turns, trap = text_turns(rng, scene), no_shape_turn(rng)
    if rng.random() < 0.13:
        turns.insert(rng.randrange(2), trap)
    return turns


def conversation(rng: Random, scene: Scene) -> list[Turn]:
    """The second edition's: one to MOST_TURNS in random order; no answer contains a later one.

    In some scenes one question is about an absent object, or asks in the same words about a present one.
    """
    if scene.asked:
        turns = list(scene.asked)
    elif scene.receipt is not None:
        turns = receipt_turns(rng, scene.receipt)
    elif scene.chart is not None:
        turns = chart_turns(rng, scene.chart)
    elif scene.topic == "clothes":
        turns = clothes_turns(rng, scene)
    else:
        turns = turns_of(rng, scene)
    rng.shuffle(turns)
    roll = rng.random()
    special = None
    if roll < FALSE_PREMISES and scene.topic != "easy":
        special = false_premise(rng, scene)
    elif roll < FALSE_PREMISES + TWINS:
        special = twin(rng, scene)
    if special is not None:
        turns.insert(rng.randrange(3), special)
    return _without_echoes(turns)[:MOST_TURNS]


def _without_echoes(turns: list[Turn]) -> list[Turn]:
    """Each answer once, except Yes and No, because a repeated answer could be copied from the conversation."""
    kept: list[Turn] = []
    for question, answer in turns:
        is_echo = any(answer == said or (len(answer) > 3 and answer in said) for _, said in kept)
        if (not is_echo or answer in ("Yes", "No")) and all(question != asked for asked, _ in kept):
            kept.append((question, answer))
    return kept
