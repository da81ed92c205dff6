"""``--to gguf``: the decoder with its vocabulary; llama.cpp, if installed, answers by it and splits text as we do."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import CheckpointError, ContextLengthError, ExportError, MissingExtraError
from fastvlm.export import gguf_file, libllama
from fastvlm.export.export import export
from fastvlm.export.gguf import Vocabulary
from fastvlm.export.libllama import LibLlama
from fastvlm.export.readme import GGUF_PYTHON
from fastvlm.formats.places import checkpoint_path
from fastvlm.opening import open_checkpoint

gguf = pytest.importorskip("gguf")
EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENIZER = checkpoint_path("mini") / "tokenizer.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    target = tmp_path_factory.mktemp("gguf") / "it"
    steps = []
    report = export("mini", target, to="gguf", progress=lambda *step: steps.append(step))
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]
    return target, report


@pytest.fixture(scope="module")
def llama(exported):
    pytest.importorskip("xllamacpp")
    with LibLlama(exported[0] / "decoder-q8.gguf", num_tokens=256, threads=1) as opened:
        yield opened


def test_the_file_has_tensors_and_vocabulary(exported):
    folder, _ = exported
    reader = gguf.GGUFReader(folder / "decoder-q8.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.5.ffn_down.weight", "blk.0.attn_q.bias"} <= names
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert len(tokens.data) == 4096
    assert bytes(tokens.parts[tokens.data[4095]]).decode() == "<image>"
    assert (folder / "decoder-q4.gguf").stat().st_size < (folder / "decoder-q8.gguf").stat().st_size
    readme = (folder / "README.md").read_text()
    assert "Not for Ollama, LM Studio or llama-server yet" in readme and GGUF_PYTHON in readme


def test_llama_cpp_gives_our_tokens(exported):
    pytest.importorskip("xllamacpp")
    bf16, q8, q4 = exported[1].checks
    assert len(bf16.images) == 6 and bf16.num_tokens == q8.num_tokens > 20
    assert bf16.num_equal_tokens == bf16.num_tokens and bf16.logits < 0.01
    assert q8.num_equal_tokens == q8.num_tokens and q8.logits < 0.05
    assert q4.logits < 0.2


def test_the_readme_answers(exported, llama):
    code = GGUF_PYTHON.replace("CHECKPOINT", '"mini"').replace("What is this?", "What shape is it?")
    code = code.replace('"photo.jpg"', repr(str(EXAMPLES / "red_star.png")))
    done = subprocess.run([sys.executable, "-c", code], cwd=exported[0], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "It is a star."


def test_files_that_were_not_run_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(gguf_file.FORMAT.__dict__, "not_checked", "xllamacpp is not installed")
    report = export("mini", tmp_path / "it", to="gguf", dtypes=["q4"])
    assert not report.checks and "xllamacpp" in report.not_run
    assert f"Not run here: {report.not_run}." in (tmp_path / "it" / "README.md").read_text()


@pytest.fixture(scope="module")
def tokenizer():
    return open_checkpoint("mini").processor.tokenizer


TEXTS = [
    "What shape is it?",
    "  two  spaces\n\n\nlines\r\n\ttabs \n ",
    "Füße, naïve, 日本語のテキスト, русский, العربية, हिन्दी, 🎉👩‍👩‍👧",
    "I'll say 12,345.67 isn't x**2 == y_1; C:\\path <|not a token|>",
    "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_splits_text_as_we_do(llama, tokenizer, text):
    ids = llama.tokenize(text)
    assert ids == tokenizer(text)["input_ids"]
    assert llama.detokenize(ids) == text


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z"], max_codepoint=0x2FFF) | st.sampled_from("\n\r\t '")))
def test_any_text_comes_back(llama, tokenizer, text):
    text = unicodedata.normalize("NFC", text)  # which our tokenizer does by itself, and llama.cpp does not
    ids = llama.tokenize(text)
    assert ids == tokenizer(text)["input_ids"]
    assert llama.detokenize(ids) == text


def test_mistakes_in_libllama_are_named(exported, llama, tmp_path, monkeypatch):
    import numpy as np

    with pytest.raises(ContextLengthError, match="num_tokens is 256"):
        llama.prefill(np.zeros((257, llama.width), dtype=np.float32))
    with pytest.raises(ContextLengthError, match="257 tokens"):
        llama.decode(5, 256)
    with pytest.raises(ExportError, match=rf"shape \(3, 7\); expected \(tokens, {llama.width}\)"):
        llama.prefill(np.zeros((3, 7), dtype=np.float32))
    file = tmp_path / "cut.gguf"
    file.write_bytes((exported[0] / "decoder-q8.gguf").read_bytes()[:200_000])
    with pytest.raises(CheckpointError, match=r"llama.cpp cannot read .*cut.gguf: \S"):
        LibLlama(file)
    monkeypatch.setattr(libllama, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="no_such_package"):
        LibLlama(file)


def test_ids_without_a_token_get_fillers():
    vocabulary = Vocabulary.of_file(TOKENIZER, 4100)
    assert vocabulary.tokens[4099] == "[PAD4099]" and vocabulary.kinds[4099] == "UNUSED"
    assert vocabulary.kinds[4094] == "CONTROL" and len(set(vocabulary.tokens)) == 4100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "this is WordPiece behind Split, ByteLevel"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}, "this is Unigram"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "this is BPE behind Metaspace"),
        ({"pre_tokenizer": None}, "AttributeError"),
        ({"model": None}, "TypeError"),
        ({"added_tokens": [{"content": "x"}]}, "KeyError: 'id'"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, change, words):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(TOKENIZER.read_text()), **change}))
    with pytest.raises(CheckpointError, match="Expected a byte-level BPE tokenizer") as told:
        Vocabulary.of_file(file, 4096)
    assert words in str(told.value) and str(file) in str(told.value)
    with pytest.raises(CheckpointError, match="with ids below 4000; IndexError"):
        Vocabulary.of_file(TOKENIZER, 4000)


def test_a_vocabulary_as_large_as_qwen2s_is_read(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(TOKENIZER.read_text()), "padding": " " * 12_000_000}))
    assert len(Vocabulary.of_file(file, 4096).tokens) == 4096
