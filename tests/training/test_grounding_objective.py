"""The objectives beside the text: they fall where they should; runs with them learn, go on, ship nothing of them."""

import json

import pytest
import small_run
import torch
from safetensors.torch import load_file
from small_run import lines, stop_at, train, weights
from torch.testing import assert_close

from fastvlm.errors import UsageError
from fastvlm.training.grounding.objective import cell_loss, gaze_loss
from fastvlm.training.grounding.objects import IGNORED
from fastvlm.training.recipe import HeadsEntry, Recipe

HEADS = {"reminding": {"layer": 0, "heads": [0]}, "looking": {"layer": 1, "heads": [1]}}


def test_cells_are_weighed_by_image_and_the_unknown_count_nothing():
    classes = torch.zeros(2, 4, 4, dtype=torch.int64)
    classes[0, 0, 0], classes[1] = 1, IGNORED
    colors = torch.full_like(classes, IGNORED)
    right = torch.nn.functional.one_hot(classes.clamp(min=0), 3).float() * 50
    assert_close(cell_loss(right, torch.zeros(2, 4, 4, 2), classes, colors), torch.tensor(0.0))
    wrong = right.clone()
    wrong[1] = -right[1]
    assert_close(cell_loss(wrong, torch.zeros(2, 4, 4, 2), classes, colors), torch.tensor(0.0))
    wrong[0, 0, 0] = torch.tensor([50.0, 0, 0])
    assert cell_loss(wrong, torch.zeros(2, 4, 4, 2), classes, colors) > 40


def test_gazes_ask_their_own_heads_alone():
    attentions = [torch.full((1, 2, 5, 5), 0.2) for _ in range(2)]
    batch = {
        "gaze_rows": torch.tensor([0, 0]),
        "gaze_positions": torch.tensor([3, 4]),
        "gaze_is_reminder": torch.tensor([True, False]),
        "gaze_seen": torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=torch.bool),
    }
    heads = HeadsEntry(layer=1, heads=(1,))
    assert_close(gaze_loss(attentions, heads, batch, is_reminder=True), torch.tensor(0.4).log().neg())
    assert_close(gaze_loss(attentions, heads, batch, is_reminder=False), torch.tensor(0.2).log().neg())
    attentions[1][0, 1, 3, :2] = 0.5
    assert_close(gaze_loss(attentions, heads, batch, is_reminder=True), torch.tensor(0.0))
    batch["gaze_is_reminder"][0] = False
    assert gaze_loss(attentions, heads, batch, is_reminder=True) == 0, "none of this kind"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Colored images that tell what stands in their middle, and where it is said."""
    file = small_run.samples(tmp_path_factory.mktemp("grounded"), 16)
    records = json.loads(file.read_text())
    for number, record in enumerate(records[:16]):
        record["objects"] = [{"name": "square", "box": [0, 0, 40 + number, 60]}]
        record["looks"] = [{"at": 0, "objects": [0], "words": ["shown"]}]
    file.write_text(json.dumps(records))
    (file.parent / "names.json").write_text(json.dumps({"objects": ["square"]}))
    return file


def recipe(model, data, **changes) -> Recipe:
    return small_run.recipe(model, data, **{"grounding": HEADS, **changes})


@pytest.fixture(scope="module")
def straight(small_model, data, tmp_path_factory):
    return train(recipe(small_model, data, max_steps=10), tmp_path_factory.mktemp("runs") / "straight")


def test_a_run_learns_where_things_stand(straight):
    for objective in ("objects", "looks"):
        losses = [line[objective] for line in lines(straight.folder) if line.get(objective)]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), objective


def test_nothing_of_it_is_shipped(straight):
    names = [name for file in straight.model.glob("*.safetensors") for name in load_file(file)]
    assert names and not any("grounding" in name for name in names)
    trained = [name for file in straight.checkpoint.glob("*.safetensors") for name in load_file(file)]
    assert any("grounding_objective" in name for name in trained), "checkpoints have it, for going on"


def test_going_on_is_the_same_to_the_last_bit(straight, small_model, data, tmp_path):
    plan = recipe(small_model, data, max_steps=10)
    train(plan, tmp_path / "run", on_progress=stop_at(4))
    gone_on = train(plan, tmp_path / "run", is_resumed=True)
    assert lines(gone_on.folder) == lines(straight.folder)
    expected = weights(straight.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(gone_on.model).items())


def test_looks_alone_need_no_names(small_model, small_data, tmp_path):
    plan = recipe(small_model, small_data, max_steps=2, grounding={**HEADS, "objects": 0})
    assert "objects" not in lines(train(plan, tmp_path / "run").folder)[0]


def test_heads_that_the_decoder_lacks_are_refused(small_model, data, tmp_path):
    plan = recipe(small_model, data, grounding={**HEADS, "looking": {"layer": 9, "heads": [0]}})
    with pytest.raises(UsageError, match=r"grounding.looking names layer 9 and heads \[0\]; the decoder has \d layers"):
        train(plan, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient_checkpointing": True}, "gradient_checkpointing discards"),
        ({"parts": {"encoder": "frozen"}}, "grounding.objects=0"),
        ({"parts": {"encoder": 1e-3, "decoder": "frozen"}}, "grounding.looks=0"),
        ({"lora": {}, "parts": {"encoder": 1e-3}}, "with lora"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Recipe.model_validate({"grounding": {}, **changes})
