"""Recipes: what is shipped is valid, what is wrong is named, what is written reads as it was."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import UsageError
from fastvlm.training.recipe import PARTS, Recipe, read_recipe, shipped_recipes

PAPER = {"align": ("frozen", 1e-3, "frozen", 256), "resolution": (2e-5,) * 3 + (128,), "instruct": (2e-5,) * 3 + (128,)}


def test_the_stages_of_the_paper_and_the_ways_to_fine_tune_are_shipped():
    assert set(shipped_recipes()) == {"align", "resolution", "instruct", "lora", "lora-encoder", "qlora", "mini"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_each_shipped_recipe_is_valid_and_says_what_it_is_for(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert shipped_recipes()[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", PAPER)
def test_rates_and_batches_are_the_paper_s(name):
    recipe = read_recipe(name)
    assert (*(recipe.parts.of(part).lr for part in PARTS), recipe.batch_size) == PAPER[name]
    assert (recipe.schedule, recipe.warmup_ratio, recipe.epochs) == ("cosine", 0.03, 1)


def written(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


WRONG = {
    "learning_rate: 1": "unknown key 'learning_rate'; did you mean 'parts.decoder.lr'?",
    "lr: 1": "unknown key 'lr'; did you mean 'parts.encoder.lr'?",
    "Max-Step: 1": "unknown key 'Max-Step'; did you mean 'max_steps'?",
    "ema_decay: 0.9": "unknown key 'ema_decay'; did you mean 'ema'?",
    "fractoin: 0.9": "unknown key 'fractoin'; did you mean 'eval.fraction'?",
    "nothing_like_it: 0": "unknown key 'nothing_like_it'; known here: name, model",
    "parts: {encoder: {learning_rate: 1}}": "did you mean 'lr'",
    "lora: {modle: mini}": "unknown key 'lora.modle'; did you mean 'model'?",
    "data: [{path: a, image_in: b}]": "unknown key 'data.0.image_in'; did you mean 'images_in'?",
    "eval: {data: [{path: a, repeats: 2}]}": "unknown key 'eval.data.0.repeats'; did you mean 'repeat'?",
    "grounding: {looking: {layer: 1, heads: [0], hed: 1}}": "'grounding.looking.hed'; did you mean 'heads'?",
    "batchsize: 3": "unknown key 'batchsize'; did you mean 'batch_size'?",
    "parts: {encodr: 1.0}": "unknown key 'parts.encodr'; did you mean 'encoder'?",
    "parts: {encoder: {lr: 1.0, rate: 2}}": "unknown key 'parts.encoder.rate'",
    "lora: {rank: 3}": "unknown key 'lora.rank'; did you mean 'r'?",
    "batch_size: many": r"batch_size: .*integer.* \(got 'many'\)",
    "parts: {encoder: -1.0}": "parts.encoder",
    "parts: {encoder: frosen}": "parts.encoder.*frozen",
    "base_bits: 8": "only a frozen base under lora",
    "parts: {encoder: frozen, projector: frozen, decoder: frozen}": "nothing would be trained",
    "batch_size: 10": "not a multiple of micro_batch_size 8",
    "lora: {parts: [encoder]}": "parts.encoder.lr",
    "lora: {parts: [decoder]}\nema: 0.9": "with lora leave it out",
    "lora: {}\nfrom_scratch: true": "do not go together",
    "lora: {parts: [projector]}": "decoder either has adapters or is frozen",
    "eval: {every: 3}": "either data or fraction",
    "- a": "holds a list; expected keys and values",
    "a: [": "is not valid YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named(text, tmp_path):
    with pytest.raises(UsageError, match=WRONG[text]) as raised:
        read_recipe(written(tmp_path, text))
    assert "mine.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'qlora'"):
        read_recipe("qlorra")


def test_short_forms_are_the_long_ones(tmp_path):
    short = read_recipe(written(tmp_path, "parts: {encoder: 1.0e-5, decoder: frozen}\ndata: [a.json]"))
    long = read_recipe(
        written(tmp_path, "parts: {encoder: {lr: 1.0e-5}, decoder: {lr: frozen}}\ndata: [{path: a.json, repeat: 1}]")
    )
    assert short == long and short.learns("encoder") and not short.learns("decoder")


def test_the_former_name_of_images_in_goes_on_working(tmp_path):
    former = read_recipe(written(tmp_path, "data: [{path: a.json, pictures_in: folder}]"))
    assert former == read_recipe(written(tmp_path, "data: [{path: a.json, images_in: folder}]"))
    assert former.to_dict()["data"][0]["images_in"] == "folder" and "pictures" not in former.to_yaml()


def test_changes_go_on_top_whatever_the_form_below(tmp_path):
    file = written(tmp_path, "parts: {encoder: frozen}\nbatch_size: 16")
    changes = {"parts.encoder.batchnorm": "train", "parts.encoder.lr": 1e-4, "eval.fraction": 0.1, "batch_size": 32}
    recipe = read_recipe(file, changes)
    assert recipe.parts.encoder.lr == 1e-4 and recipe.parts.encoder.batchnorm == "train"
    assert recipe.eval.fraction == 0.1 and recipe.batch_size == 32
    assert file.read_text().endswith("16"), "the file is only read"


def test_adapters_leave_a_part_s_own_weights_alone():
    recipe = read_recipe("lora")
    assert [recipe.learns(part) for part in PARTS] == [False, True, False]


rates = st.one_of(st.just("frozen"), st.floats(1e-9, 1.0))


@given(
    encoder=rates,
    projector=rates,
    micro=st.integers(1, 8),
    factor=st.integers(1, 8),
    size=st.none() | st.integers(64, 2048) | st.tuples(st.integers(64, 999), st.integers(64, 999)),
    ema=st.none() | st.floats(0.1, 0.999),
    fraction=st.none() | st.floats(0.01, 0.9),
)
def test_written_and_read_again_is_the_same(encoder, projector, micro, factor, size, ema, fraction):
    recipe = Recipe.model_validate(
        {
            "data": ["one.json", {"path": "two", "images_in": "x: y", "repeat": 0.5}],
            "parts": {"encoder": encoder, "projector": projector},
            "micro_batch_size": micro,
            "batch_size": micro * factor,
            "image_size": size,
            "ema": ema,
            "eval": None if fraction is None else {"fraction": fraction},
        }
    )
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_every_key_is_explained():
    text = Recipe.__doc__
    missing = [key for key in Recipe.model_fields if not re.search(rf"\b{key}\b.*:|\b{key},", text)]
    assert not missing


def test_recipes_are_part_of_the_package():
    import fastvlm

    assert all(file.is_relative_to(Path(fastvlm.__file__).parent) for file in shipped_recipes().values())
