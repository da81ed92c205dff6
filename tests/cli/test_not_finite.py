"""A checkpoint with NaN in its weights ends in one line and a non-zero exit code, never in an answer."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module", params=["down_proj", "multi_modal_projector"])
def damaged_folder(request, tmp_path_factory, parrot_folder):
    """The parrot with one NaN in a matrix of that part."""
    folder = shutil.copytree(parrot_folder, tmp_path_factory.mktemp("damaged") / "parrot")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in sorted(weights.items()) if request.param in name and value.dim() == 2)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("options", [(), ("--json",), ("--dtype", "float32")])
def test_ask_gives_no_answer(fastvlm, image, damaged_folder, options):
    outcome = fastvlm("ask", image, "What?", "-m", damaged_folder, *options)
    assert outcome.code == 1 and outcome.out.strip() == ""
    assert "NaN" in outcome.error


def test_chat_tells_of_each_question_and_fails(fastvlm, image, damaged_folder):
    outcome = fastvlm("chat", image, "-m", damaged_folder, stdin=b"What?\n/history\n")
    assert outcome.code == 1 and outcome.out.strip() == ""
    assert "NaN" in outcome.error
