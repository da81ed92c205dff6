"""``--to coreml``: packages that compute what the checkpoint does, and the folder of Apple's app.

Without coremltools the traced graphs, the app's weights and the error are tested; with it the packages, which are
computed operation by operation, because Core ML itself runs on Apple's systems alone.
"""

import importlib.util
import json
import types
from collections import Counter
from pathlib import Path

import numpy as np
import parrot
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastvlm.errors import ExportError, MissingExtraError
from fastvlm.export.coreml_app import app_name, app_warnings, write_app_weights
from fastvlm.export.coreml_graphs import EncoderGraph, StatefulDecoder, capacity_of
from fastvlm.export.coreml_readme import python_lines
from fastvlm.export.decoder import TokenDecoder
from fastvlm.export.export import export
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, traced
from fastvlm.export.packages import versions_of
from fastvlm.export.source import open_source
from fastvlm.formats.places import checkpoint_path

STAR = Path(__file__).parents[2] / "examples" / "red_star.png"
needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="needs coremltools: pip install 'fastvlm[coreml]'"
)


@pytest.fixture(scope="module")
def mini():
    return open_source(checkpoint_path("mini"))


@torch.no_grad()
def test_the_traced_encoder_is_the_encoder():
    mini = open_source(checkpoint_path("mini"), 128)
    vision = VisionGraph(mini.checkpoint)
    pixels = torch.rand(1, 3, mini.side_px, mini.side_px)
    expected = vision(pixels)
    torch.testing.assert_close(traced(vision, torch.zeros_like(pixels))(pixels), expected, rtol=1e-4, atol=1e-4)
    features = traced(EncoderGraph(vision), torch.zeros_like(pixels))(pixels)
    assert features.shape == (1, mini.tokens_per_image, mini.checkpoint.config.vision_config.hidden_size)
    torch.testing.assert_close(vision.projector(features), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_stateful_decoder_is_the_decoder_also_traced(mini):
    ids = torch.tensor([[40, 83, 628, 312, 448, 13]])
    tokens, embeds = TokenDecoder(mini.checkpoint), EmbeddingGraph(mini.checkpoint)(ids)
    expected = tokens(ids, torch.arange(6)[None], *tokens.empty_cache(1))[0]
    graph = StatefulDecoder(mini, 16)
    example = torch.zeros(1, 3, mini.width), torch.zeros(1, 1, 3, 5)
    for decoder in (graph, traced(graph, *example)):
        causal = torch.full((4, 4), -1e4).triu(1)[None, None]
        decoder(embeds[:, :4], causal)
        decoder(embeds[:, 4:5], torch.zeros(1, 1, 1, 5))
        torch.testing.assert_close(decoder(embeds[:, 5:], torch.zeros(1, 1, 1, 6)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_0.bias"),
        ("model.multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.weight"),
        ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_tower.timm_model.stem.0.reparam_conv.weight", None),
    ],
)
def test_names_of_the_app(name, expected):
    assert app_name(name) == expected


def test_the_app_gets_projector_and_decoder(mini, tmp_path):
    write_app_weights(mini, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    table = mini.checkpoint.tensors["model.language_model.embed_tokens.weight"]
    assert tensors["language_model.model.embed_tokens.weight"].equal(table.half())
    assert {name.split(".")[0] for name in tensors} == {"language_model", "multi_modal_projector"}
    config = json.loads((tmp_path / "config.json").read_text())
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    placeholder = next(token["id"] for token in words["added_tokens"] if token["content"] == "<image>")
    assert config["model_type"] == "llava_qwen2" and config["image_token_index"] == placeholder
    assert config["tie_word_embeddings"] == ("language_model.lm_head.weight" not in tensors)
    assert config["mm_hidden_size"] == tensors["multi_modal_projector.linear_0.weight"].shape[1]
    assert config["vocab_size"] == len(table)
    images = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert images["processor_class"] == "LlavaProcessor" and images["size"] == {"shortest_edge": mini.side_px}
    (warning,) = app_warnings(mini)
    assert "64 features of 768" in warning and "256 of 3072" in warning


def test_the_readmes_program_can_be_read(mini):
    compile(python_lines(mini, "fp16"), "README.md", "exec")
    assert capacity_of(mini) == 2048


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[coreml\]"):
        export("mini", tmp_path / "it", to="coreml")
    assert not (tmp_path / "it").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint with one decoder layer, exported."""
    from fastvlm.export.export import export

    folder = parrot.save(tmp_path_factory.mktemp("checkpoints") / "parrot")
    target = tmp_path_factory.mktemp("coreml") / "it"
    steps = []
    report = export(folder, target, to="coreml", progress=lambda *step: steps.append(step))
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]
    return target, report


def program_of(package):
    from fastvlm.export.coreml_interpreter import CoreMlPackage

    return CoreMlPackage(package)


@needs_coremltools
def test_the_packages_answer_as_the_checkpoint(small, capfd):
    folder, report = small
    half, app = report.checks
    assert (half.variant, app.variant) == ("fp16", "app")
    assert half.num_equal_tokens == half.num_tokens > 10 and app.num_equal_tokens == app.num_tokens
    assert half.logits < 1e-3 and app.features < 1e-5
    assert "never run on a Mac" in report.not_run and "expects 256 of 3072" in " ".join(report.warnings)
    assert {path.name for path in (folder / "fp16").iterdir()} == {
        "vision_encoder.mlpackage",
        "token_embedding.mlpackage",
        "decoder.mlpackage",
    }
    assert (folder / "app" / "fastvithd.mlpackage" / "Manifest.json").is_file()
    assert (folder / "app" / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


@needs_coremltools
def test_inputs_and_outputs(small):
    folder, _ = small
    half, single = 65552, 65568  # of Core ML's ArrayFeatureType
    vision = program_of(folder / "fp16" / "vision_encoder.mlpackage")
    assert vision.spec.specificationVersion == 8  # iOS 17
    (image,) = vision.spec.description.input
    assert image.name == "image" and image.type.imageType.width == image.type.imageType.height == parrot.SIZE_PX
    assert image.type.imageType.colorSpace == 20  # RGB
    (features,) = vision.spec.description.output
    assert features.name == "image_features" and list(features.type.multiArrayType.shape) == [1, 4, parrot.HIDDEN]
    assert features.type.multiArrayType.dataType == half
    types = Counter(op.op_type for op in vision._main.operations)
    assert types["conv"] > 10 and types["gelu"] > 3 and types["softmax"] == types["layer_norm"] == 2
    for op in vision._main.operations:
        if op.op_type in ("conv", "layer_norm"):
            assert op.outputs[0].dtype.__name__ == ("fp16" if op.op_type == "conv" else "fp32")
    app = program_of(folder / "app" / "fastvithd.mlpackage").spec.description
    assert (app.input[0].name, app.output[0].name) == ("images", "image_features")
    assert {app.input[0].type.multiArrayType.dataType, app.output[0].type.multiArrayType.dataType} == {single}
    decoder = program_of(folder / "fp16" / "decoder.mlpackage")
    assert decoder.spec.specificationVersion == 9  # iOS 18
    assert [port.name for port in decoder.spec.description.input] == ["inputs_embeds", "mask"]
    assert [state.name for state in decoder.spec.description.state] == ["keys_0", "values_0"]
    exact = [op for op in decoder._main.operations if op.op_type in ("cos", "sin", "rsqrt", "pow")]
    assert exact and all(op.outputs[0].dtype.__name__ == "fp32" for op in exact)
    cosine = next(op for op in exact if op.op_type == "cos")
    angles = cosine.inputs["x"].op.inputs["values"][0]
    assert angles.dtype.__name__ == "fp32" and angles.op.op_type == "mul"  # float16 has no late positions


class _Model:
    """Stands in for coremltools' MLModel, which can compute on macOS alone."""

    def __init__(self, package):
        self._package = program_of(Path(package))

    def make_state(self):
        self._package.reset()

    def predict(self, inputs, state=None):
        given = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        if "image" in given:
            given["image"] = given["image"].permute(2, 0, 1)[None]
        given = {name: value if name == "input_ids" else value.float() for name, value in given.items()}
        return {name: value.numpy() for name, value in self._package(**given).items()}


@needs_coremltools
def test_the_readmes_program_answers(small, tmp_path, monkeypatch, capsys):
    folder, _ = small
    program = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    fake = types.ModuleType("coremltools")
    fake.models = types.SimpleNamespace(MLModel=_Model)
    Image.open(STAR).convert("RGB").crop((0, 0, 200, 120)).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    lines = program.replace("import coremltools as ct\n", "")
    exec(compile(lines, "README.md", "exec"), {"ct": fake})
    assert capsys.readouterr().out.strip() == parrot.SENTENCE
    (folder / "photo.jpg").unlink()


@needs_coremltools
def test_what_cannot_be_converted_is_one_line_and_nothing_is_left(small, tmp_path, monkeypatch):
    import coremltools

    def refuse(*_, **__):
        raise ValueError("no such operation")

    monkeypatch.setattr(coremltools, "convert", refuse)
    with pytest.raises(ExportError, match=r"cannot convert vision_encoder.mlpackage: no such operation. Try"):
        export("mini", tmp_path / "it", to="coreml", dtypes=["fp16"])
    assert list(tmp_path.iterdir()) == []


@needs_coremltools
def test_an_unknown_operation_is_named(small):
    package = program_of(small[0] / "fp16" / "token_embedding.mlpackage")
    package._main.operations[-1]._op_type = "no_such_operation"
    with pytest.raises(ExportError, match="the operation"):
        package._compute(types.SimpleNamespace(op_type="no_such_operation"), {})


@needs_coremltools
@pytest.mark.slow
def test_the_mini_answers_alike(tmp_path):
    report = export("mini", tmp_path / "it", to="coreml", dtypes=["fp16", "fp32", "app"])
    half, single, app = report.checks
    assert half.features < 1e-2 and half.logits < 1e-2 and half.num_equal_tokens == half.num_tokens
    assert single.features < 1e-5 and single.logits < 1e-3  # its cache is float16, too
    assert app.features < 1e-5 and app.logits < 1e-4
    assert versions_of(["coremltools"], "coreml", "x").keys() == {"coremltools"}
