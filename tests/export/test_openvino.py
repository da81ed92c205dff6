"""``--to openvino``: the models compute what the checkpoint does, and openvino-genai's pipeline answers."""

import numpy as np
import pytest
from PIL import Image

from fastvlm.errors import UsageError
from fastvlm.export.export import export

pytest.importorskip("openvino")
pytest.importorskip("openvino_tokenizers")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("openvino") / "it"
    report = export("mini", target, to="openvino", dtypes=["fp32"])
    (check,) = report.checks
    assert check.features < 1e-4 and check.logits < 1e-4 and check.num_equal_tokens == check.num_tokens
    return target


def test_the_pipeline_answers(folder):
    genai = pytest.importorskip("openvino_genai")
    ov = pytest.importorskip("openvino")
    from pathlib import Path

    image = Image.open(Path(__file__).parents[2] / "examples" / "red_star.png").convert("RGB")
    pipeline = genai.VLMPipeline(str(folder), "CPU")
    answer = pipeline.generate("What shape is it?", images=[ov.Tensor(np.array(image)[None])], max_new_tokens=16)
    assert str(answer).strip() == "It is a star."


def test_a_folder_holds_one_dtype(tmp_path):
    with pytest.raises(UsageError, match="holds one dtype"):
        export("mini", tmp_path / "x", to="openvino", dtypes=["int8", "int4"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
def test_other_dtypes_answer_too(tmp_path, dtype):
    report = export("mini", tmp_path / "it", to="openvino", dtypes=[dtype])
    (check,) = report.checks
    assert check.num_equal_tokens >= (0.9 if dtype == "fp16" else 0.6) * check.num_tokens
