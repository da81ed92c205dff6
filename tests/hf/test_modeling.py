"""As a transformers model: attention rules, dtypes, saving, training, compiling, and what wrong input gets."""

import copy
import pickle
import warnings

import pytest
import tiny
import torch

from fastvlm import FastVlmForConditionalGeneration, FastVlmModel
from fastvlm.errors import AttentionError, ConfigError, ImageTokenMismatchError


def inputs_for(layouts, side="left"):
    inputs = tiny.batch([tiny.prompt(layout, seed=n) for n, layout in enumerate(layouts)], side)
    return {**inputs, "pixel_values": tiny.images(sum(layout.count("i") for layout in layouts))}


def assert_close(ours, reference):
    """Not bit-equal: the same weights lie at another address, and products may add in another order."""
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


# What wrong input gets.


def test_ids_and_embeddings_exclude_each_other(tiny_model):
    inputs = inputs_for(["it"])
    embeds = tiny_model.get_input_embeddings()(inputs["input_ids"])
    for wrong in ({}, {"input_ids": inputs["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ConfigError, match="You must specify exactly one of input_ids or inputs_embeds"):
            tiny_model(**wrong)


def test_images_and_their_features_exclude_each_other(tiny_model):
    inputs = inputs_for(["it"])
    features = tiny_model.get_image_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="You cannot specify both pixel_values and mm_encoder_outputs"):
        tiny_model(**inputs, mm_encoder_outputs={"image": features})


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 2, 3, 64, 64)])
def test_images_of_a_wrong_shape_are_told_so(shape, tiny_model):
    with pytest.raises(ConfigError, match=r"pixel_values has the shape .*expected \(images, 3, height, width\)"):
        tiny_model.get_image_features(torch.rand(shape))


@pytest.mark.parametrize(
    "call",
    [{"vision_feature_layer": -2}, {"vision_feature_layer": [-1]}, {"vision_feature_select_strategy": "default"}],
)
def test_feature_selection_that_does_not_exist_is_an_error(call, tiny_model):
    with pytest.raises(ConfigError, match="is supported in FastVLM"):
        tiny_model.get_image_features(tiny.images(1), **call)
    with pytest.raises(ConfigError, match="is supported in FastVLM"):
        tiny_model(**inputs_for(["it"]), **call)


def test_two_images_and_one_place(tiny_model):
    inputs = tiny.batch([tiny.prompt("it")])
    with pytest.raises(ImageTokenMismatchError, match=r"tokens: 4, features: 8.*2 image"):
        tiny_model(**inputs, pixel_values=tiny.images(2))


def test_an_image_of_another_size_than_its_places(tiny_model):
    inputs = tiny.batch([tiny.prompt("it")])
    with pytest.raises(ImageTokenMismatchError, match=r"Sample 0 .* 4 <image> tokens, .* not a multiple of the 9"):
        tiny_model(**inputs, pixel_values=tiny.images(1, 192, 192))


# Attention.


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_flash_for_the_whole_model_names_the_way_out(name, tiny_config, tiny_model):
    said = rf'own attention\. .*attn_implementation=\{{"text_config": "{name}"\}}'
    with pytest.raises(AttentionError, match=said):
        FastVlmForConditionalGeneration._from_config(tiny_config, attn_implementation=name)
    with pytest.raises(AttentionError, match=said):
        tiny_model.set_attn_implementation(name)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_eager_and_sdpa_give_the_same(name, tiny_config, tiny_model):
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(tiny_model, inputs)
    other = FastVlmForConditionalGeneration._from_config(tiny_config, attn_implementation=name).eval()
    other.load_state_dict(tiny_model.state_dict())
    assert other.model.language_model.config._attn_implementation == name
    gap = (logits_of(other, inputs) - reference).abs()[inputs["attention_mask"].bool()]
    assert gap.max() <= 1e-4


def test_flash_for_the_decoder_alone_needs_only_flash_attn(tiny_config):
    # flash-attn cannot be installed without a GPU: that it is the one thing missing is what can be shown here.
    with pytest.raises(ImportError, match=r"(?i)flash.?attn|flash.?attention"):
        FastVlmForConditionalGeneration._from_config(
            tiny_config, attn_implementation={"text_config": "flash_attention_2"}
        )


@pytest.mark.parametrize("name", ["flash_attention_9", "sdpaa", {"text_config": "sdpaa"}], ids=str)
def test_unknown_attention_is_an_error(name, tiny_config):
    with pytest.raises((ValueError, AttentionError), match=r"sdpaa|flash_attention_9"):
        FastVlmForConditionalGeneration._from_config(tiny_config, attn_implementation=name)


def test_an_own_attention_function_reaches_the_decoder_and_only_it(tiny_config, tiny_model):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    seen = []

    def counting(module, *args, **kwargs):
        seen.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("counting", counting)
    ALL_MASK_ATTENTION_FUNCTIONS.register("counting", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(tiny_model, inputs)
    tiny_model.set_attn_implementation({"text_config": "counting"})
    assert torch.equal(logits_of(tiny_model, inputs), reference)
    assert seen == ["Qwen2Attention"] * 2


def test_attentions_of_the_encoder_are_refused(tiny_model):
    with pytest.raises(ValueError, match="Cannot set `output_attentions`"):
        tiny_model.get_image_features(tiny.images(1), output_attentions=True)


# Precision.


def overflowing_model():
    """A model in whose encoder a map goes far past the end of float16 (65,504), and comes back; all weights fit."""
    model = tiny.model()
    with torch.no_grad():
        first, second = model.model.vision_tower.timm_model.stages[:2]
        first.blocks[0].mlp.fc1.weight.mul_(100.0)
        first.blocks[0].mlp.fc2.weight.mul_(10_000.0)
        for layer in second.downsample.proj:
            layer.reparam_conv.weight.mul_(0.003)
    return model


def test_the_overflowing_case_does_overflow_without_care():
    model = overflowing_model()
    image = tiny.images(1)
    assert all(p.abs().max() < 65_504 for p in model.parameters())
    encoder = model.model.vision_tower.timm_model
    with torch.no_grad():
        assert encoder.forward_with_stages(image)[1][0].abs().max() > 65_504
        assert not copy.deepcopy(encoder).half()(image.half()).isfinite().all()


@pytest.mark.parametrize("how", ["half", "to", "from_pretrained", "from_pretrained_then_half"])
def test_float16_never_gives_nan(how, tmp_path):
    model = overflowing_model()
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(model, inputs)
    settings = {"max_new_tokens": 5, "do_sample": False, "bad_words_ids": [[tiny.IMAGE_ID]]}
    if how.startswith("from_pretrained"):
        model.save_pretrained(tmp_path)
        model = FastVlmForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    model = model.half() if how.endswith("half") else model.to(torch.float16) if how == "to" else model
    logits = logits_of(model, inputs)
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()
    assert (logits.float() - reference).abs()[inputs["attention_mask"].bool()].max() < 0.1 * reference.abs().max()
    assert model.generate(**inputs, **settings).shape[1] > inputs["input_ids"].shape[1]


def test_from_pretrained_keeps_the_encoder_in_float32_for_float16_alone(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    dtypes = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = FastVlmForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        dtypes[dtype] = {p.dtype for p in model.model.vision_tower.parameters()}
        assert {p.dtype for p in model.model.language_model.parameters()} == {dtype}
    assert dtypes == {
        torch.float16: {torch.float32},
        torch.bfloat16: {torch.bfloat16},
        torch.float32: {torch.float32},
    }


def test_bfloat16_is_close_to_float32(tiny_model):
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(tiny_model, inputs)
    logits = logits_of(copy.deepcopy(tiny_model).bfloat16(), inputs)
    assert logits.dtype == torch.bfloat16
    gap = (logits.float() - reference).abs()[inputs["attention_mask"].bool()]
    assert gap.mean() < 0.05 * reference.std()


# Saving, copying, resizing.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["10GB", "100KB"])
def test_round_trip_through_a_folder_is_bit_equal(tied, shard, tmp_path):
    model = tiny.model(text={"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shard == "100KB")
    again, report = FastVlmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied
    state, reference = again.state_dict(), model.state_dict()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[key], reference[key]) for key in reference)


def test_training_form_is_saved_and_opened_as_such(tmp_path):
    model = tiny.model(vision={"inference_mode": False})
    inputs = inputs_for(["titt"])
    model.save_pretrained(tmp_path)
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert not again.model.vision_tower.timm_model.is_fused
    assert_close(logits_of(again, inputs), logits_of(model, inputs))


def test_a_fused_model_is_saved_as_fused(tmp_path):
    model = tiny.model(vision={"inference_mode": False})
    inputs = inputs_for(["titt"])
    reference = logits_of(model, inputs)
    model.model.vision_tower.timm_model.reparameterize()
    model.save_pretrained(tmp_path)
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert again.model.vision_tower.timm_model.is_fused
    torch.testing.assert_close(logits_of(again, inputs), reference, atol=1e-4, rtol=0)


def test_the_bare_model_reads_the_whole_ones_folder(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    bare = FastVlmModel.from_pretrained(tmp_path)
    inputs = inputs_for(["titt"])
    with torch.no_grad():
        assert torch.equal(bare(**inputs).last_hidden_state, tiny_model.model(**inputs).last_hidden_state)


def test_placed_by_accelerate(tmp_path, tiny_model):
    pytest.importorskip("accelerate")
    tiny_model.save_pretrained(tmp_path)
    placed = FastVlmForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    assert {p.device.type for p in placed.parameters()} == {"cpu"}
    inputs = inputs_for(["titt"])
    assert_close(logits_of(placed, inputs), logits_of(tiny_model, inputs))


def test_the_tower_is_never_split_over_devices(tiny_model):
    assert {"FastVlmVisionTower", "Qwen2DecoderLayer"} <= set(tiny_model._no_split_modules)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(copier, tiny_model):
    inputs = inputs_for(["titt"])
    assert_close(logits_of(copier(tiny_model), inputs), logits_of(tiny_model, inputs))


@pytest.mark.parametrize("tied", [False, True])
def test_more_tokens(tied):
    model = tiny.model(text={"tie_word_embeddings": tied})
    inputs = inputs_for(["titt"])
    reference = logits_of(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(120, mean_resizing=False)
    assert model.config.text_config.vocab_size == 120
    assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (120, 32)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert_close(logits_of(model, inputs)[..., : tiny.VOCAB], reference)


def test_embeddings_can_be_replaced(tiny_model):
    new = torch.nn.Embedding(tiny.VOCAB, 32)
    tiny_model.set_input_embeddings(new)
    assert tiny_model.model.language_model.embed_tokens is new
    head = torch.nn.Linear(32, tiny.VOCAB, bias=False)
    tiny_model.set_output_embeddings(head)
    assert tiny_model.get_output_embeddings() is head


def test_builds_on_the_meta_device(tiny_config):
    with torch.device("meta"):
        model = FastVlmForConditionalGeneration(tiny_config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    features = model.get_image_features(torch.empty(2, 3, 1024, 512, device="meta"))
    assert features.pooler_output.shape == (2, 128, 32)


# Training.


# transformers 5.23 renames gradient to activation checkpointing; peft and its own Trainer use the old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


def loss_of(model, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE_ID, -100)
    return model(**inputs, labels=labels, use_cache=False).loss


@OLD_NAME
@pytest.mark.parametrize("is_fused", [True, False])
def test_gradient_checkpointing_reaches_the_stages_and_changes_no_gradient(is_fused):
    inputs = inputs_for(["titt", "it"])
    gradients = []
    for has_checkpoints in (False, True):
        model = tiny.model(vision={"inference_mode": is_fused}).train()
        calls = []
        if has_checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for stage in model.model.vision_tower.timm_model.stages:
                assert stage.gradient_checkpointing
                stage.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss_of(model, inputs).backward()
        assert len(calls) == (10 if has_checkpoints else 0), "each of the five blocks runs again in the backward pass"
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@OLD_NAME
def test_gradient_checkpointing_can_be_switched_off_again(tiny_model):
    tiny_model.gradient_checkpointing_enable()
    tiny_model.gradient_checkpointing_disable()
    assert not any(s.gradient_checkpointing for s in tiny_model.model.vision_tower.timm_model.stages)


def test_a_few_steps_lower_the_loss(tiny_model):
    model, inputs = tiny_model.train(), inputs_for(["titttt", "itttt"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = loss_of(model, inputs)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_frozen_encoder_and_trained_projector(tiny_model):
    # Stage 1 of the recipe: only the projector learns.
    tiny_model.requires_grad_(False)
    tiny_model.model.multi_modal_projector.requires_grad_(True)
    loss_of(tiny_model.train(), inputs_for(["titt"])).backward()
    assert {n for n, p in tiny_model.named_parameters() if p.grad is not None} == {
        f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }


@OLD_NAME
def test_trainer_takes_two_steps(tmp_path, tiny_model):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    samples = [inputs_for(["titt"]) for _ in range(4)]
    data = [{name: tensor[0] for name, tensor in sample.items()} for sample in samples]
    for sample in data:
        sample["labels"] = sample["input_ids"].masked_fill(sample["input_ids"] == tiny.IMAGE_ID, -100)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=2,
        dataloader_pin_memory=False,
        gradient_checkpointing=True,
    )
    before = tiny_model.model.vision_tower.timm_model.stem[0].reparam_conv.weight.clone()
    result = Trainer(model=tiny_model, args=arguments, train_dataset=data).train()
    assert result.global_step == 2
    assert result.training_loss > 0
    assert not torch.equal(before, tiny_model.model.vision_tower.timm_model.stem[0].reparam_conv.weight)
    assert FastVlmForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2").config.image_token_index == 100


@OLD_NAME
def test_lora_on_the_decoder(tiny_model):
    peft = pytest.importorskip("peft")
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(tiny_model, inputs)
    lora = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", task_type="CAUSAL_LM", init_lora_weights=True
    )
    model = peft.get_peft_model(tiny_model, lora)
    torch.testing.assert_close(logits_of(model, inputs), reference, atol=1e-5, rtol=0)  # adapters start as nothing
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        loss_of(model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = logits_of(model.eval(), inputs)
    assert (trained - reference).abs().max() > 1e-4
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, inputs), trained, atol=1e-4, rtol=1e-4)
    assert isinstance(merged, FastVlmForConditionalGeneration)


# Compiling.


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend, tiny_model):
    torch._dynamo.reset()
    inputs = inputs_for(["titt", "it"])
    reference = logits_of(tiny_model, inputs)
    compiled = torch.compile(tiny_model, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_encoder_compiles_as_one_graph_at_several_sizes(tiny_model):
    torch._dynamo.reset()
    encoder = tiny_model.model.vision_tower.timm_model
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for size in ((128, 128), (64, 192)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(tiny.images(1, *size)), encoder(tiny.images(1, *size)))


# Fields.


def test_tower_output_follows_its_config(tiny_model):
    tower = tiny_model.model.vision_tower
    tower.config.output_hidden_states = True
    assert len(tower(tiny.images(1)).hidden_states) == 5
    assert tower(tiny.images(1), output_hidden_states=False).hidden_states is None
    tower.config.return_dict = False
    assert isinstance(tower(tiny.images(1)), tuple)


def test_embeddings_in_place_of_ids(tiny_model):
    inputs = inputs_for(["titt", "it"])
    embeds = tiny_model.get_input_embeddings()(inputs["input_ids"])
    rest = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        assert torch.equal(tiny_model(inputs_embeds=embeds, **rest).logits, logits_of(tiny_model, inputs))


def test_features_in_place_of_images_are_bit_equal(tiny_model):
    inputs = inputs_for(["titit", "tt", "it"])
    reference = logits_of(tiny_model, inputs)
    features = tiny_model.get_image_features(inputs.pop("pixel_values"))
    with torch.no_grad():
        assert torch.equal(tiny_model(**inputs, mm_encoder_outputs={"image": features}).logits, reference)


def test_each_sample_sees_its_own_images_only(tiny_model):
    inputs = inputs_for(["titt", "ttit"])
    reference = logits_of(tiny_model, inputs)
    other = dict(inputs, pixel_values=inputs["pixel_values"].clone())
    other["pixel_values"][1] = tiny.images(1, seed=9)[0]
    changed = logits_of(tiny_model, other)
    assert torch.equal(changed[0], reference[0])
    assert (changed[1] - reference[1]).abs().max() > 1e-2


def test_order_of_images_matters(tiny_model):
    inputs = inputs_for(["titit"])
    swapped = dict(inputs, pixel_values=inputs["pixel_values"].flip(0))
    assert (logits_of(tiny_model, inputs) - logits_of(tiny_model, swapped)).abs().max() > 1e-2
