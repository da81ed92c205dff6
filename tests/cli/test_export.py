"""`fastvlm export`: a checked folder that `ask` opens, all or nothing; mistakes are named before any work."""

import json

import numpy as np
import onnx_ir
import parrot
import pytest

from fastvlm.export import onnx_folder
from fastvlm.formats.checksums import verify_checksums
from fastvlm.formats.exported import EXPORT_FILE


@pytest.fixture(scope="module")
def exported(tmp_path_factory, parrot_folder):
    from fastvlm.export.export import export

    target = tmp_path_factory.mktemp("exported") / "it"
    before = {file.name: file.read_bytes() for file in parrot_folder.iterdir()}
    steps = []
    report = export(parrot_folder, target, dtypes=["q8", "fp32"], progress=lambda *step: steps.append(step))
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]
    assert {file.name: file.read_bytes() for file in parrot_folder.iterdir()} == before
    return target, report


def test_the_folder_is_complete_and_checked(exported):
    folder, report = exported
    assert report.variants == ("fp32", "q8") and not report.not_run and not report.warnings
    assert report.checks[0].features < 1e-4 and report.checks[0].logits < 1e-4
    assert all(check.num_equal_tokens == check.num_tokens > 10 for check in report.checks)
    assert all(check.state == "good" for check in verify_checksums(folder) if check.name != "README.md")
    notes = json.loads((folder / EXPORT_FILE).read_text())
    assert notes["image_size"] == [parrot.SIZE_PX] * 2 and len(notes["checks"]) == 2
    names = {file.name for file in (folder / "onnx").iterdir()}
    assert names == {
        f"{session}{suffix}.onnx"
        for session in ("vision_encoder", "embed_tokens", "decoder_model_merged")
        for suffix in ("", "_quantized")
    }


def test_ask_opens_it(fastvlm, exported, image):
    folder, _ = exported
    answer = parrot.SENTENCE + "\n"
    assert fastvlm("ask", image, "What?", "-m", folder).out == answer
    for dtype in ("auto", "fp32", "q8"):
        outcome = fastvlm("ask", image, "What?", "-m", folder, "--runtime", "onnx", "--dtype", dtype)
        assert (outcome.code, outcome.out) == (0, answer)
    schema = json.dumps({"enum": ["yes", "no"]})
    outcome = fastvlm("ask", image, image, "What?", "-m", folder, "--json-schema", schema)
    assert json.loads(outcome.out) in ("yes", "no")


def test_the_class_answers_several_at_once(exported, image):
    from fastvlm.integrations.onnx import OnnxFastVLM

    with OnnxFastVLM(exported[0], dtype="fp32", threads=1, num_slots=2) as model:
        assert (
            model.batch([(str(image), "What?"), (None, "Hello"), ([str(image)] * 2, "What?")]) == [parrot.SENTENCE] * 3
        )
        assert "".join(model.stream(str(image), "What?")) == parrot.SENTENCE


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--runtime", "onnx", "--dtype", "q4"], 2, "dtype is 'q4'; this folder has fp32, q8"),
        (["--runtime", "onnx", "--dtype", "float32"], 2, "--dtype is 'float32'; expected one of auto, fp32"),
        (["--runtime", "tensorrt"], 2, "--runtime is 'tensorrt'; expected one of torch, onnx"),
        (["--image-size", "192"], 2, "whose files fix it"),
        (["--bits", "8"], 2, "bits is 8"),
    ],
)
def test_what_an_export_cannot_do(fastvlm, exported, image, options, code, words):
    outcome = fastvlm("ask", image, "What?", "-m", exported[0], *options)
    assert outcome.code == code and words in outcome.error


def test_a_checkpoint_is_no_export(fastvlm, parrot_folder, image):
    outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, "--runtime", "onnx")
    assert outcome.code == 1 and "expected a folder of fastvlm export" in outcome.error


def test_an_export_is_no_checkpoint(fastvlm, exported, tmp_path):
    outcome = fastvlm("export", exported[0], tmp_path / "again")
    assert outcome.code == 1 and "is an exported folder" in outcome.error
    assert not (tmp_path / "again").exists()


def test_a_damaged_export_is_one_line(fastvlm, exported, image, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    (folder / "onnx" / "embed_tokens.onnx").write_bytes(b"damaged")
    outcome = fastvlm("ask", image, "What?", "-m", folder, "--runtime", "onnx", "--dtype", "fp32")
    assert outcome.code == 1 and "onnxruntime cannot open" in outcome.error
    (folder / "onnx" / "embed_tokens.onnx").unlink()
    outcome = fastvlm("ask", image, "What?", "-m", folder, "--runtime", "onnx", "--dtype", "fp32")
    assert outcome.code == 1 and "is missing" in outcome.error
    (folder / EXPORT_FILE).write_text('{"fastvlm_export": 99}')
    outcome = fastvlm("ask", image, "What?", "-m", folder)
    assert outcome.code == 1 and "is not of version 1" in outcome.error
    (folder / EXPORT_FILE).write_text('{"fastvlm_export": 1, "format": "onnx"}')
    outcome = fastvlm("ask", image, "What?", "-m", folder)
    assert outcome.code == 1 and "cannot be read" in outcome.error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "tflite"], "--to is 'tflite'; expected one of onnx, openvino, mlx, coreml, executorch, gguf"),
        (["--dtype", "int3"], "onnx has no dtype 'int3'; it has fp32, fp16, q8, q4, q4f16"),
        (["--dtype", "fp32,,q8"], "expected names with commas"),
        (["--image-size", "100"], "multiple of 64"),
        (["--check-images", "nowhere.png"], "There is no file"),
        (["--no-check", "--check-images", "EXAMPLE"], "give one"),
        (["--page-library", "nowhere"], "give --page too"),
        (["--page", "--page-library", "nowhere"], "npm install"),
    ],
)
def test_impossible_options(fastvlm, parrot_folder, tmp_path, options, words):
    outcome = fastvlm("export", parrot_folder, tmp_path / "x", *options)
    assert outcome.code == 2 and words in outcome.error
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(fastvlm, parrot_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    outcome = fastvlm("export", parrot_folder, tmp_path / "mine")
    assert outcome.code == 2 and "nothing is overwritten" in outcome.error


def test_a_missing_package_names_the_extra(fastvlm, parrot_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = fastvlm("export", parrot_folder, tmp_path / "x")
    assert outcome.code == 1 and "pip install 'fastvlm[onnx]'" in outcome.error


@pytest.fixture
def made_before(exported, monkeypatch):
    """Graphs are those of the exported folder, because exporting takes long."""
    monkeypatch.setattr(
        onnx_folder, "onnx_graph", lambda name, _source, **_: onnx_ir.load(exported[0] / "onnx" / f"{name}.onnx")
    )


@pytest.mark.usefixtures("made_before")
def test_files_are_not_run_if_nobody_wants_it(fastvlm, parrot_folder, tmp_path):
    outcome = fastvlm("export", parrot_folder, tmp_path / "x", "--dtype", "fp32", "--no-check")
    assert outcome.code == 0 and "not run here: checks were turned off" in outcome.err
    assert "Not run here: checks were turned off." in (tmp_path / "x" / "README.md").read_text()
    assert json.loads((tmp_path / "x" / EXPORT_FILE).read_text())["checks"] == []


@pytest.mark.usefixtures("made_before")
def test_files_are_not_run_if_memory_is_short(fastvlm, parrot_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvlm.export.memory.free_bytes", lambda: 1000)
    outcome = fastvlm("export", parrot_folder, tmp_path / "x", "--dtype", "fp32,q8")
    assert outcome.code == 0 and "running fp32 takes about 0.0 GB of memory" in outcome.err
    assert "running q8 takes" in outcome.err and "checked:" not in outcome.err


@pytest.mark.parametrize(("factor", "words"), [(float("inf"), "NaN or infinity"), (2.0, "do not compute what")])
def test_wrong_files_are_refused_and_nothing_is_left(
    fastvlm, exported, parrot_folder, tmp_path, monkeypatch, factor, words
):
    def wrong(name, source, *, is_half):
        graph = onnx_ir.load(exported[0] / "onnx" / f"{name}.onnx")  # exporting takes long
        if name == "embed_tokens":
            (table,) = graph.graph.initializers.values()
            with np.errstate(invalid="ignore"):  # zero times infinity
                wrong_rows = table.const_value.numpy()[::-1] * np.float32(factor)
            table.const_value = onnx_ir.tensor(wrong_rows, name=table.name)
        return graph

    monkeypatch.setattr(onnx_folder, "onnx_graph", wrong)
    outcome = fastvlm("export", parrot_folder, tmp_path / "x", "--dtype", "fp32")
    assert outcome.code == 1 and words in outcome.error
    assert list(tmp_path.glob("x")) == []
