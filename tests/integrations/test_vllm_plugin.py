"""The plugin of vLLM without vLLM: registration on stand-ins for its registries, names of weights, refusals."""

import importlib
import json
import sys
import types
from importlib.metadata import entry_points

import apple_layout
import pytest
import tiny
import torch
from transformers import AutoConfig

from fastvlm import FastVlmConfig
from fastvlm.errors import CheckpointError, ConfigError, InstallationError, MissingExtraError
from fastvlm.formats.names import EMBEDDING, HEAD, names_to_apple
from fastvlm.hf.config import LlavaQwen2Config
from fastvlm.integrations import vllm_plugin, vllm_weights
from fastvlm.processing.prompt import TRAINED_TEMPLATE


class BaseInfo:
    def __init__(self, ctx):
        self.ctx = ctx


class Generic:
    def __class_getitem__(cls, _):
        return cls


class Embeddings(list):
    def get_feature_size(self, index):
        return len(self[index])


def module(monkeypatch, name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def registered(monkeypatch):
    """What was registered: the stand-ins have what vLLM 0.32 has where the plugin meets it."""
    found = {"models": {}, "templates": {}, "configs": {}}
    models = types.SimpleNamespace(register_model=found["models"].__setitem__)
    templates = types.SimpleNamespace(register_chat_template_fallback_path=found["templates"].__setitem__)
    module(monkeypatch, "vllm", __version__="0.32.0+cpu", ModelRegistry=models)
    module(monkeypatch, "vllm.transformers_utils")
    module(monkeypatch, "vllm.transformers_utils.chat_templates", registry=templates)

    def register(model_type, config, exist_ok):
        found["configs"][model_type] = config

    monkeypatch.setattr(AutoConfig, "register", register)
    return found


@pytest.fixture
def processor_module(monkeypatch):
    """`vllm_processor` on stand-ins for the base classes that it derives from."""
    fields = types.SimpleNamespace(batched=lambda modality: ("batched", modality))
    module(monkeypatch, "vllm")
    module(monkeypatch, "vllm.multimodal")
    module(monkeypatch, "vllm.multimodal.inputs", MultiModalFieldConfig=fields)
    module(monkeypatch, "vllm.multimodal.parse", ImageEmbeddingItems=Embeddings)
    module(
        monkeypatch,
        "vllm.multimodal.processing",
        BaseProcessingInfo=BaseInfo,
        BaseDummyInputsBuilder=Generic,
        BaseMultiModalProcessor=Generic,
        PromptReplacement=dict,
    )
    monkeypatch.delitem(sys.modules, "fastvlm.integrations.vllm_processor", raising=False)
    yield importlib.import_module("fastvlm.integrations.vllm_processor")
    sys.modules.pop("fastvlm.integrations.vllm_processor", None)


def context(config, tokenizer=None, model="there", **mm_kwargs):
    return types.SimpleNamespace(
        model_config=types.SimpleNamespace(model=str(model), revision=None),
        tokenizer=tokenizer,
        get_hf_config=lambda _: config,
        get_merged_mm_kwargs=lambda kwargs: {**mm_kwargs, **kwargs},
    )


@pytest.fixture(scope="module")
def apple_folder(tmp_path_factory):
    return apple_layout.write_apple_folder(
        tmp_path_factory.mktemp("apple") / "model", apple_layout.tokenized_model(vision={"inference_mode": False})
    )


def test_vllm_finds_the_plugin_by_its_entry_point():
    (point,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "fastvlm"]
    assert point.load() is vllm_plugin.register


def test_both_model_types_are_registered_and_nothing_is_imported_for_them(registered):
    vllm_plugin.register()
    vllm_plugin.register()
    assert registered["configs"] == {"fast_vlm": FastVlmConfig, "llava_qwen2": LlavaQwen2Config}
    assert set(registered["models"]) == {"FastVlmForConditionalGeneration", "LlavaQwen2ForCausalLM"}
    assert set(registered["models"].values()) == {"fastvlm.integrations.vllm_model:FastVlmForVllm"}
    assert set(registered["templates"]) == {"fast_vlm", "llava_qwen2"}
    assert "fastvlm.integrations.vllm_model" not in sys.modules


def test_a_folder_without_a_template_gets_the_trained_one(registered):
    vllm_plugin.register()
    assert {path.read_text() for path in registered["templates"].values()} == {TRAINED_TEMPLATE}


def test_the_configuration_of_a_folder_is_what_its_tensors_say(registered, apple_folder):
    vllm_plugin.register()
    content = json.loads((apple_folder / "config.json").read_text())
    config = registered["configs"]["llava_qwen2"].from_dict(content, name_or_path=str(apple_folder))
    assert type(config) is FastVlmConfig and not config.vision_config.is_inference_form
    of_the_hub = registered["configs"]["llava_qwen2"].from_dict(content, name_or_path="owner/name")
    assert of_the_hub.vision_config.is_inference_form, "by the file alone: the published encoder"


@pytest.mark.parametrize("version", ["0.29.0", "0.32.0+cpu", "0.33.1.dev5+g1234"])
def test_supported_versions(version):
    assert vllm_plugin.version_problem(version) is None


@pytest.mark.parametrize("version", ["0.28.9", "0.34.0", "1.0", "dev"])
def test_another_version_is_refused_in_one_line_when_a_checkpoint_is_opened(registered, version):
    sys.modules["vllm"].__version__ = version
    vllm_plugin.register()  # vLLM would only log what it raises, and other models shall go on working
    for config in registered["configs"].values():
        with pytest.raises(InstallationError, match=rf"^vLLM {version} is .* supports vLLM 0\.29 to 0\.33\. [^\n]*$"):
            config.from_dict({})


@pytest.mark.parametrize("name", ["vllm_processor", "vllm_model"])
def test_without_vllm_it_is_one_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[vllm\]"):
        vllm_plugin.register()
    monkeypatch.delitem(sys.modules, f"fastvlm.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[vllm\]"):
        importlib.import_module(f"fastvlm.integrations.{name}")


def test_a_broken_vllm_says_itself_what_is_wrong():
    error = ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    assert vllm_plugin.missing_vllm(error) is error


def test_each_image_takes_as_many_placeholders_as_its_size_asks_for(processor_module, apple_folder):
    config = FastVlmConfig.from_pretrained(apple_folder)
    info = processor_module.FastVlmInfo(context(config, model=apple_folder))
    assert info.get_supported_mm_limits() == {"image": None}
    own = info.get_mm_max_tokens_per_item(100, {"image": 1})["image"]
    assert own == (tiny.SIZE_PX // 64) ** 2
    processor = processor_module.FastVlmMultiModalProcessor()
    processor.info = info
    images = {"image": [object()]}
    (update,) = processor._get_prompt_updates(images, {}, None)
    assert update["target"] == [config.image_token_index] and update["replacement"](0) == update["target"] * own
    (update,) = processor._get_prompt_updates(images, {"image_size": 192}, None)
    assert len(update["replacement"](0)) == 9
    (update,) = processor._get_prompt_updates({"image": Embeddings([torch.zeros(5, 8)])}, {}, None)
    assert len(update["replacement"](0)) == 5
    assert processor._get_mm_fields_config({}, {})["pixel_values"] == ("batched", "image")


def test_the_engines_own_size_counts_for_placeholders(processor_module, apple_folder):
    config = FastVlmConfig.from_pretrained(apple_folder)
    info = processor_module.FastVlmInfo(context(config, model=apple_folder, image_size=256))
    assert info.num_visual_tokens({}) == 16, "vLLM passes the request's settings alone"
    assert info.num_visual_tokens({"images_kwargs": {"image_size": 64}}) == 1
    with pytest.raises(ConfigError, match="100"):
        info.num_visual_tokens({"image_size": 100})


def test_dummy_inputs(processor_module, apple_folder):
    inputs = processor_module.FastVlmDummyInputs()
    inputs.info = processor_module.FastVlmInfo(context(FastVlmConfig.from_pretrained(apple_folder), model=apple_folder))
    inputs._get_dummy_images = lambda **asked: asked
    assert inputs.get_dummy_text({"image": 2}) == "<image><image>" and not inputs.get_dummy_text({})
    asked = inputs.get_dummy_mm_data(10, {"image": 2}, {})["image"]
    assert asked == {"width": tiny.SIZE_PX, "height": tiny.SIZE_PX, "num_images": 2, "overrides": None}


def test_replies_of_apples_folders_end(processor_module, apple_folder):
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(apple_folder, config=Qwen2Config())
    tokenizer.eos_token = "<|endoftext|>"
    assert "<image>" not in tokenizer.get_vocab()
    config = FastVlmConfig.from_pretrained(apple_folder)
    processor_module.FastVlmInfo(context(config, tokenizer, apple_folder))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.encode("<image>", add_special_tokens=False) == [config.image_token_index]


def test_a_tokenizer_of_another_model_is_refused(processor_module, apple_folder):
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(apple_folder, config=Qwen2Config())
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ConfigError, match="do not belong together"):
        processor_module.FastVlmInfo(context(FastVlmConfig.from_pretrained(apple_folder), tokenizer, apple_folder))


def test_weights_of_fastvlm_quantize_are_refused(processor_module, tmp_path):
    (tmp_path / "fastvlm_quantised.safetensors").touch()
    with pytest.raises(CheckpointError, match="fastvlm convert"):
        processor_module.FastVlmInfo(context(None, model=tmp_path))


def loaded(model, weights):
    """The tensors of `weights` as the model of vLLM gets them; they must be those of `model`."""
    text = model.config.text_config
    return dict(
        vllm_weights.canonical_weights(
            weights.items(), num_rows=text.vocab_size, is_tied=model.config.tie_word_embeddings
        )
    )


@pytest.mark.parametrize("is_fused", [True, False])
def test_weights_of_both_layouts_get_canonical_names(is_fused):
    model = tiny.model(vision={"inference_mode": is_fused})
    state = model.state_dict()
    of_apple = {apple: state[name] for name, apple in names_to_apple(state).items()}
    of_apple[apple_layout.HEAD_PROJ] = torch.zeros(1)  # the CLIP head
    for weights in (state, of_apple, dict(reversed(of_apple.items()))):
        found = loaded(model, weights)
        assert found.keys() == state.keys()
        assert all(found[name] is state[name] for name in state)


def test_a_table_without_the_placeholders_row_is_filled_up():
    model = tiny.model()
    state = model.state_dict()
    short = {name: tensor[:-2] if name in (EMBEDDING, HEAD) else tensor for name, tensor in state.items()}
    found = loaded(model, short)
    for name in (EMBEDDING, HEAD):
        assert torch.equal(found[name][:-2], state[name][:-2]) and not found[name][-2:].any()


def test_without_a_head_the_table_is_the_head():
    model = tiny.model()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != HEAD}
    assert loaded(model, state)[HEAD] is state[EMBEDDING]
    tied = dict(vllm_weights.canonical_weights(state.items(), num_rows=1, is_tied=True))
    assert HEAD not in tied
    packed = {**state, "lm_head.weight_packed": torch.zeros(1)}
    assert HEAD not in loaded(model, packed)
