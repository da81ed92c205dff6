"""``--to executorch``: the cached decoder equals the plain one; the file answers, also by ExecuTorch's own runner."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.export.decoder import TokenDecoder, expanded_attention, grouped_attention
from fastvlm.export.executorch_graphs import CachedDecoder, RoundedEmbedding, plain_attention
from fastvlm.export.export import export
from fastvlm.export.graphs import EmbeddingGraph
from fastvlm.hf.processor import FastVlmProcessor

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # lowering the mini takes minutes


@pytest.fixture(scope="module")
def checkpoint():
    class NoProcessor(FastVlmProcessor):
        def __init__(self):
            pass

    return tiny.model().to_checkpoint(NoProcessor())


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_the_cached_decoder_equals_the_plain_one_however_a_prompt_is_cut(checkpoint, lengths, seed):
    ids = torch.tensor([tiny.prompt("t" * sum(lengths), seed=seed)])
    cached, plain, embed = CachedDecoder(checkpoint, 24), TokenDecoder(checkpoint), EmbeddingGraph(checkpoint)
    cached(embed(ids), torch.arange(ids.shape[1]))  # an earlier conversation in the cache changes nothing
    start = 0
    for length in lengths:
        stop = start + length
        found = cached(embed(ids[:, start:stop]), torch.arange(start, stop))
        expected, *_ = plain(ids[:, :stop], torch.arange(stop)[None], *plain.empty_cache(1))
        torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-4)
        start = stop


@torch.no_grad()
def test_a_mask_of_floats_is_that_of_bools():
    queries, keys, values = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    is_seen = torch.arange(5)[None, None, None] <= torch.tensor([2, 3, 4])[None, None, :, None]
    expected = grouped_attention(queries, keys, values, is_seen)
    for attention in (grouped_attention, expanded_attention):
        found = attention(queries, keys, values, torch.where(is_seen, 0.0, -1e9))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_encoders_attention_is_torchs():
    queries, keys, values = torch.randn(3, 1, 2, 7, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    torch.testing.assert_close(plain_attention(queries, keys, values), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_embeddings_in_8_bits(checkpoint):
    ids = torch.tensor([tiny.prompt("tttttttt")])
    expected = EmbeddingGraph(checkpoint)(ids)
    found = RoundedEmbedding(checkpoint)(ids)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= float(expected.abs().max()) / 127


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[executorch\]"):
        export("mini", tmp_path / "x", to="executorch")


def test_a_context_is_refused_where_files_fix_none(tmp_path):
    with pytest.raises(UsageError, match="any length"):
        export("mini", tmp_path / "x", to="gguf", context=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("executorch")
    target = tmp_path_factory.mktemp("executorch") / "it"
    report = export("mini", target, to="executorch", dtypes=["fp32"], context=512)
    (check,) = report.checks
    assert check.features < 1e-4 and check.logits < 1e-4 and check.num_equal_tokens == check.num_tokens > 20
    return target


@pytest.mark.slow
def test_the_readmes_lines_answer_by_the_multimodal_runner(folder, tmp_path):
    readme = (folder / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    image = ROOT / "examples" / "red_star.png"
    program = program.replace("photo.jpg", str(image)).replace("What is this?", "What shape is it?")
    done = subprocess.run(
        [sys.executable, "-c", program + "print(['answer', answer])"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "['answer', 'It is a star." in done.stdout


@pytest.mark.slow
def test_the_file_says_what_the_runner_asks(folder):
    from fastvlm.export.executorch_backend import ExecuTorchFile

    file = ExecuTorchFile(folder / "model-fp32.pte")
    assert file.constant("get_max_seq_len") == [512] == file.constant("get_max_context_len")
    assert 4094 in file.constant("get_eos_ids") and file.constant("get_vocab_size") == [4096]
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_rounded_files_answer_too(folder, tmp_path, dtype):
    report = export("mini", tmp_path / "it", to="executorch", dtypes=[dtype], context=512)
    (check,) = report.checks
    assert check.num_equal_tokens >= 0.6 * check.num_tokens
    small, exact = tmp_path / "it" / f"model-{dtype}.pte", folder / "model-fp32.pte"
    assert small.stat().st_size < 0.8 * exact.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("context", [64, 10**6])
def test_a_context_that_cannot_be_is_named(tmp_path, context):
    pytest.importorskip("executorch")
    with pytest.raises(UsageError, match="--context"):
        export("mini", tmp_path / "x", to="executorch", context=context)
