"""With the same weights, our model is transformers' ``fast_vlm``: logits, loss, gradients, fields, generation."""

import pytest
import tiny
import torch
import transformers

from fastvlm.hf.cache_name import CACHE_NAME

TOLERANCE = 1e-4
# Older releases return features and multi-dimensional logits_to_keep in other shapes, and repeat images for beams.
AS_DOCUMENTED = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    reason="transformers before 5.23 behaves otherwise",
)
BATCHES = {
    "single": (["tittt"], "left"),
    "image_first": (["itt"], "left"),
    "left_padded": (["tittttt", "it", "ttitt"], "left"),
    "right_padded": (["tittttt", "it", "ttitt"], "right"),
    "two_images": (["titit"], "left"),
    "two_images_side_by_side": (["iitt"], "left"),
    "mixed_left": (["titit", "tt", "it", "iiitt"], "left"),
    "mixed_right": (["titit", "tt", "it", "iiitt"], "right"),
    "text_only": (["tttt", "tt"], "left"),
}


def inputs_for(layouts, side):
    inputs = tiny.batch([tiny.prompt(layout, seed=n) for n, layout in enumerate(layouts)], side)
    num_images = sum(layout.count("i") for layout in layouts)
    if num_images:
        inputs["pixel_values"] = tiny.images(num_images)
    return inputs


def assert_same(ours, theirs, mask=None, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    gap = (ours - theirs).abs()
    assert (gap if mask is None else gap[mask.bool()]).max() <= tolerance


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(name, attention, twins):
    ours, theirs = twins()
    inputs = inputs_for(*BATCHES[name])
    for model in (ours, theirs):
        model.model.language_model.set_attn_implementation(attention)
    with torch.no_grad():
        logits, reference = ours(**inputs).logits, theirs(**inputs).logits
    assert reference.std() > 0.1
    assert_same(logits, reference, inputs["attention_mask"])


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (100, 130)])
def test_logits_at_other_sizes(size, twins):
    ours, theirs = twins()
    tokens_per_image = ours.config.num_visual_tokens(*size)
    inputs = tiny.batch([tiny.prompt("titt", tokens_per_image), tiny.prompt("it", tokens_per_image)])
    inputs["pixel_values"] = tiny.images(2, *size)
    with torch.no_grad():
        assert_same(ours(**inputs).logits, theirs(**inputs).logits, inputs["attention_mask"])


def test_logits_of_the_training_form(twins):
    ours, theirs = twins(vision={"inference_mode": False})
    inputs = inputs_for(["titt"], "left")
    with torch.no_grad():
        assert_same(ours(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["mixed_left", "mixed_right", "text_only"])
def test_loss_and_all_gradients(name, tied, twins):
    ours, theirs = twins(text={"tie_word_embeddings": tied})
    inputs = inputs_for(*BATCHES[name])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == tiny.IMAGE_ID] = -100
    losses = [model(**inputs, labels=labels).loss for model in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=TOLERANCE)
    for loss in losses:
        loss.backward()
    reference = dict(theirs.named_parameters())
    assert {n for n, _ in ours.named_parameters()} == set(reference)
    for key, parameter in ours.named_parameters():
        theirs_grad = reference[key].grad
        assert (parameter.grad is None) == (theirs_grad is None), key
        if theirs_grad is not None:
            scale = max(1.0, theirs_grad.abs().max().item())
            assert_same(parameter.grad, theirs_grad, tolerance=TOLERANCE * scale)
    if name != "text_only":
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in ours.model.vision_tower.parameters())


def test_loss_with_a_given_number_of_items(twins):
    ours, theirs = twins()
    inputs = inputs_for(["titt"], "left")
    labels = inputs["input_ids"].clone()
    loss = ours(**inputs, labels=labels, num_items_in_batch=torch.tensor(3)).loss
    assert loss.item() == pytest.approx(
        theirs(**inputs, labels=labels, num_items_in_batch=torch.tensor(3)).loss.item(), abs=TOLERANCE
    )


MODES = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "several_replies": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "sampled_replies": {"do_sample": True, "num_return_sequences": 3},
    "no_cache": {"do_sample": False, "use_cache": False},
    "static_cache": {"do_sample": False, "cache_implementation": "static"},
    "repetition_penalty": {"do_sample": False, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", ["single", "left_padded", "mixed_left", "text_only"])
@pytest.mark.parametrize("mode", MODES)
@AS_DOCUMENTED
def test_generated_tokens(mode, name, twins):
    ours, theirs = twins()
    inputs = inputs_for(*BATCHES[name])
    # A placeholder among the new tokens would be counted as one of an image when there is no cache.
    settings = {"max_new_tokens": 8, "eos_token_id": [1, 0], "pad_token_id": 0, "bad_words_ids": [[tiny.IMAGE_ID]]}
    replies = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        replies.append(model.generate(**inputs, **settings, **MODES[mode]))
    assert torch.equal(*replies)
    assert replies[0].shape[1] > inputs["input_ids"].shape[1]


def test_generated_scores(twins):
    ours, theirs = twins()
    inputs = inputs_for(["titt", "it"], "left")
    settings = {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True, "do_sample": False}
    scores = [
        model.generate(**inputs, **settings, eos_token_id=[1, 0], pad_token_id=0).scores for model in (ours, theirs)
    ]
    for mine, reference in zip(*scores, strict=True):
        finite = reference.isfinite()
        assert_same(mine[finite], reference[finite])


# 5.24 returns the encoder's whole output as `image_outputs`, in the place of `image_hidden_states`.
HAS_IMAGE_OUTPUTS = CACHE_NAME == "cache"
IMAGE_FIELD = "image_outputs" if HAS_IMAGE_OUTPUTS else "image_hidden_states"
FIELDS = ("logits", CACHE_NAME, "hidden_states", "attentions", "image_hidden_states", "loss")


@AS_DOCUMENTED
def test_every_output_field(twins):
    ours, theirs = twins()
    for model in (ours, theirs):
        model.set_attn_implementation({"text_config": "eager"})
    inputs = inputs_for(["titt", "it"], "right")
    wanted = {"output_hidden_states": True, "output_attentions": True, "labels": inputs["input_ids"]}
    with torch.no_grad():
        mine, reference = ours(**inputs, **wanted), theirs(**inputs, **wanted)
    assert set(mine.keys()) == set(FIELDS)
    assert set(reference.keys()) == {name.replace("image_hidden_states", IMAGE_FIELD) for name in FIELDS}
    for name in ("hidden_states", "attentions"):
        assert len(mine[name]) == len(reference[name])
        for tensor, other in zip(mine[name], reference[name], strict=True):
            assert_same(tensor, other)
    features = reference[IMAGE_FIELD].pooler_output if HAS_IMAGE_OUTPUTS else reference[IMAGE_FIELD]
    assert_same(mine.image_hidden_states, features)
    assert mine.image_outputs.pooler_output is mine.image_hidden_states
    assert mine.image_hidden_states.shape == (2, 4, 32)
    assert mine[CACHE_NAME].get_seq_length() == inputs["input_ids"].shape[1]


def test_tuples_have_the_same_order(twins):
    ours, theirs = twins()
    inputs = inputs_for(["titt"], "left")
    with torch.no_grad():
        mine, reference = (m(**inputs, labels=inputs["input_ids"], return_dict=False) for m in (ours, theirs))
    assert isinstance(mine, tuple)
    assert [type(part) for part in mine] == [type(part) for part in without_image(reference)] + [torch.Tensor]
    assert_same(mine[1], reference[1])
    with torch.no_grad():
        mine, reference = (m.model(**inputs, return_dict=False) for m in (ours, theirs))
    assert [type(part) for part in mine] == [type(part) for part in without_image(reference)] + [torch.Tensor]


def without_image(output):
    """All but the last: features, or in 5.24 a tuple of the encoder's outputs."""
    return list(output[:-1])


@pytest.mark.parametrize("stages", [False, True])
@AS_DOCUMENTED
def test_image_features(stages, twins):
    ours, theirs = twins()
    with torch.no_grad():
        mine, reference = (m.get_image_features(tiny.images(3), output_hidden_states=stages) for m in (ours, theirs))
    assert mine.last_hidden_state.shape == (3, 256, 2, 2)
    assert mine.pooler_output.shape == (3, 4, 32)
    assert_same(mine.last_hidden_state, reference.last_hidden_state)
    assert_same(mine.pooler_output, reference.pooler_output)
    assert (mine.hidden_states is None) == (reference.hidden_states is None) == (not stages)
    for tensor, other in zip(mine.hidden_states or (), reference.hidden_states or (), strict=True):
        assert_same(tensor, other)


@AS_DOCUMENTED
def test_image_features_as_a_tuple(twins):
    ours, theirs = twins()
    with torch.no_grad():
        mine, reference = (m.get_image_features(tiny.images(1), return_dict=False) for m in (ours, theirs))
    assert isinstance(mine, tuple)
    for tensor, other in zip(mine, reference, strict=True):
        assert_same(tensor, other)


KEEP = {
    "all": 0,
    "last": 1,
    "last_three": 3,
    "positions": torch.tensor([0, 5, 6]),
    "positions_per_sample": torch.tensor([[0, 1], [3, 6]]),
    "mask": torch.tensor([[True, False, True, False, False, True, False], [False] * 6 + [True]]),
}


@pytest.mark.parametrize("name", KEEP)
@AS_DOCUMENTED
def test_logits_to_keep(name, twins):
    ours, theirs = twins()
    inputs = inputs_for(["titt", "itt"], "left")
    assert inputs["input_ids"].shape == (2, 7)
    with torch.no_grad():
        mine, reference = (m(**inputs, logits_to_keep=KEEP[name]).logits for m in (ours, theirs))
    assert_same(mine, reference)


def test_state_dict_and_its_shapes(twins):
    ours, theirs = twins()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
def test_saved_folders_open_on_the_other_side(tied, twins, tmp_path):
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration as Theirs

    from fastvlm import FastVlmForConditionalGeneration as Ours

    ours, theirs = twins(text={"tie_word_embeddings": tied})
    inputs = inputs_for(["titt"], "left")
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    opened_there, report = Theirs.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    opened_here = Ours.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        reference = theirs(**inputs).logits
        assert_same(opened_there.eval()(**inputs).logits, reference)
        assert_same(opened_here.eval()(**inputs).logits, reference)
