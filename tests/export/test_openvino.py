"""``--to openvino``: the models compute what the checkpoint does; openvino-genai answers by the README's lines."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastvlm
from fastvlm.errors import UsageError
from fastvlm.export.checks import EXAMPLES
from fastvlm.export.export import export
from fastvlm.export.readme import OPENVINO_PYTHON
from fastvlm.processing.image_processor import ImageProcessor

pytest.importorskip("openvino")
pytest.importorskip("openvino_tokenizers")
pytest.importorskip("nncf")

SHIPPED = Path(fastvlm.__file__).parent / "web" / "page" / "examples"
QUESTIONS = {str(SHIPPED / name): question for name, question in EXAMPLES.items() if (SHIPPED / name).is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The mini in float32."""
    target = tmp_path_factory.mktemp("openvino") / "it"
    report = export("mini", target, to="openvino", dtypes=["fp32"])
    (check,) = report.checks
    assert check.features < 1e-4 and check.logits < 1e-4 and check.num_equal_tokens == check.num_tokens
    assert OPENVINO_PYTHON in (target / "README.md").read_text()
    return target


@pytest.fixture(scope="module")
def ours():
    """The mini's answers to the questions about the shipped images."""
    with fastvlm.FastVLM("mini", dtype="float32") as model:
        answers = {image: model.ask(image, question, max_new_tokens=16) for image, question in QUESTIONS.items()}
        yield answers, model.ask(None, "What is this?", max_new_tokens=16)


class Readme:
    """What the README's lines define in a folder, and what they print."""

    def __init__(self, folder, monkeypatch, capsys, image):
        pytest.importorskip("openvino_genai")
        monkeypatch.chdir(folder)
        self.names = {}
        capsys.readouterr()
        exec(OPENVINO_PYTHON.replace('"photo.jpg"', repr(str(image))), self.names)
        self.printed = capsys.readouterr().out

    def ask(self, question, *images):
        tensors = [self.names["padded"](image) for image in images]
        settings = {"images": tensors} if tensors else {}
        return str(self.names["pipeline"].generate(question, max_new_tokens=16, **settings)).strip()


def num_equal(readme, answers):
    return sum(readme.ask(QUESTIONS[image], image) == answer for image, answer in answers.items())


def test_the_readme_gives_our_answers(folder, ours, monkeypatch, capsys):
    answers, without_image = ours
    first = next(iter(QUESTIONS))
    readme = Readme(folder, monkeypatch, capsys, first)
    assert readme.printed.strip()
    assert num_equal(readme, answers) == len(answers) == len(EXAMPLES)
    assert readme.ask("What is this?") == without_image
    assert readme.ask("What do you see?", *list(QUESTIONS)[:2])  # a newline more than ours, so not compared


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most_different"), [("fp16", 0), ("int8", 0), ("int4", 2)])
def test_other_dtypes_answer_too(tmp_path, ours, monkeypatch, capsys, dtype, most_different):
    target = tmp_path / "it"
    command = [sys.executable, "-m", "fastvlm", "export", "mini", str(target), "--to", "openvino", "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{target}\n"  # nncf and openvino draw nothing there
    (check,) = json.loads((target / "fastvlm_export.json").read_text())["checks"]
    assert check["variant"] == dtype and check["logits"] < {"fp16": 1e-3, "int8": 0.1, "int4": 0.3}[dtype]
    readme = Readme(target, monkeypatch, capsys, next(iter(QUESTIONS)))
    assert num_equal(readme, ours[0]) >= len(EXAMPLES) - most_different


def test_a_folder_holds_one_dtype(tmp_path):
    with pytest.raises(UsageError, match="holds one dtype"):
        export("mini", tmp_path / "x", to="openvino", dtypes=["int8", "int4"])


def gradient(mode, width, height):
    """An image with another color at each place, transparent in parts if `mode` is."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    bands = [x * 255 // width, y * 255 // height, (x + y) % 256, (x * 7 + y * 3) % 256]
    return Image.fromarray(np.stack(bands[: len(Image.new(mode, (1, 1)).getbands())], -1).astype(np.uint8), mode)


def saved_rgb(file, width, height):
    gradient("RGB", width, height).save(file)


def saved_turned(file, width, height):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    gradient("RGB", width, height).save(file, exif=exif)


def saved_cmyk(file, width, height):
    gradient("CMYK", width, height).save(file.with_suffix(".tif"))
    file.with_suffix(".tif").rename(file)


def saved_rgba(file, width, height):
    gradient("RGBA", width, height).save(file)


def saved_palette(file, width, height):
    gradient("RGB", width, height).quantize(64).save(file, transparency=3)


def saved_gray(file, width, height):
    gradient("RGB", width, height).convert("L").save(file)


@pytest.mark.parametrize("size", [(96, 40), (40, 97), (128, 128), (1, 90)])
@pytest.mark.parametrize("save", [saved_rgb, saved_turned, saved_cmyk, saved_rgba, saved_palette, saved_gray])
def test_the_readmes_square_is_what_our_processor_sees(tmp_path, save, size):
    file, names = tmp_path / "image.png", {}
    save(file, *size)
    lines = OPENVINO_PYTHON[: OPENVINO_PYTHON.index("pipeline =")].replace("import openvino_genai\n", "")
    exec(lines, names)
    square = Image.fromarray(names["padded"](file).data[0])
    assert square.size == (max(size),) * 2
    expected = ImageProcessor(image_size=128)(str(file))["pixel_values"][0].numpy().transpose(1, 2, 0)
    found = np.asarray(square.resize((128, 128), Image.Resampling.BICUBIC)) / 255
    assert np.abs(found - expected).max() <= 1 / 255 + 1e-6
