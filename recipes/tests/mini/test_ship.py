"""A shipped folder holds the model, tokenizer and processor of the folder that it was made from."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

import fastvlm
from fastvlm_recipes.mini import ship

MINI = Path(fastvlm.__file__).parent / "weights" / "mini"


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_mini_shipped_again_is_the_mini(tmp_path, monkeypatch, capsys):
    out = tmp_path / "mini"
    out.mkdir()
    (out / "README.md").write_text("A card.")
    (out / "model-00001-of-00009.safetensors").write_bytes(b"of an earlier one")
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(sys, "argv", ["ship", "--model", str(MINI), "--out", str(out)])
    ship.main()
    assert f"MB -> {out}" in capsys.readouterr().out
    expected, found = weights(MINI), weights(out)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)
    assert (out / "README.md").read_text() == "A card." and (out / "LICENSE").is_file()
    text = "What color is the star? It is red."
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (MINI, out)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids
    assert (out / "processor_config.json").read_text() == (MINI / "processor_config.json").read_text()


def test_a_folder_that_is_too_large_is_an_error(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(ship.MOST_BYTES_A_FILE)
    with pytest.raises(ValueError, match=r"too large: \['model.safetensors'\]"):
        ship.check_sizes(tmp_path)
