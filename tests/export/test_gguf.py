"""``--to gguf``: the decoder with its vocabulary; llama.cpp, if installed, gives the same tokens for a text."""

import pytest

from fastvlm.export.export import export
from fastvlm.export.gguf import Vocabulary
from fastvlm.formats.places import checkpoint_path

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("gguf") / "it"
    export("mini", target, to="gguf", dtypes=["q8", "q4"])
    return target


def test_the_file_has_tensors_and_vocabulary(folder):
    reader = gguf.GGUFReader(folder / "decoder-q8.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.5.ffn_down.weight", "blk.0.attn_q.bias"} <= names
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == 4096
    assert bytes(tokens.parts[tokens.data[4095]]).decode() == "<image>"
    assert (folder / "decoder-q4.gguf").stat().st_size < (folder / "decoder-q8.gguf").stat().st_size
    assert "Not for Ollama" in (folder / "README.md").read_text()


def test_ids_without_a_token_get_fillers():
    vocabulary = Vocabulary.of_file(checkpoint_path("mini") / "tokenizer.json", 4100)
    assert vocabulary.tokens[4099] == "[PAD4099]" and vocabulary.kinds[4099] == "UNUSED"
    assert vocabulary.kinds[4094] == "CONTROL" and len(set(vocabulary.tokens)) == 4100
