"""Weights that are read when they are written: a graph of any size takes the memory of one tensor."""

import gc

import numpy as np
import onnxruntime
import pytest
import tiny
import torch

from fastvlm.export import onnx_graphs
from fastvlm.export.decoder import EmbeddingsDecoder, grouped_attention
from fastvlm.export.onnx_graphs import onnx_graph, save_onnx
from fastvlm.export.onnx_variants import rounded_to_4_bits, rounded_to_8_bits
from fastvlm.export.onnx_weights import Outline
from fastvlm.hf.processor import FastVlmProcessor


class Source:
    """What a decoder's graph needs of an ExportSource."""

    def __init__(self, checkpoint):
        self.checkpoint, self.width = checkpoint, checkpoint.config.text_config.hidden_size


@pytest.fixture(scope="module")
def source():
    class NoProcessor(FastVlmProcessor):
        def __init__(self):
            pass

    return Source(tiny.model().to_checkpoint(NoProcessor()))


@pytest.fixture(scope="module")
def exported(source):
    return onnx_graph("decoder_model_merged", source, is_half=False)


def logits(file, source):
    """Of five embeddings, by onnxruntime."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    text = source.checkpoint.config.text_config
    empty = np.zeros((1, text.num_key_value_heads, 0, text.head_dim), dtype=np.float32)
    inputs = {port.name: empty for port in session.get_inputs() if port.name.startswith("past")}
    inputs |= {
        "inputs_embeds": embeddings(source).numpy(),
        "attention_mask": np.ones((1, 5), dtype=np.int64),
        "position_ids": np.arange(5)[None],
        "num_logits_to_keep": np.array(0),
    }
    return torch.from_numpy(session.run(["logits"], inputs)[0])


def embeddings(source):
    return torch.randn(1, 5, source.width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_files_in_pieces_compute_what_the_decoder_does(source, exported, tmp_path, monkeypatch):
    decoder = EmbeddingsDecoder(source.checkpoint, grouped_attention)
    expected = decoder(
        embeddings(source), torch.ones(1, 5, dtype=torch.long), torch.arange(5)[None], *decoder.empty_cache(1)
    )
    monkeypatch.setattr(onnx_graphs, "LARGEST_FILE_BYTES", 20_000)
    pieces = save_onnx(exported.clone(), tmp_path, "it.onnx")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert pieces > 2 and names == sorted(["it.onnx", "it.onnx_data", *(f"it.onnx_data_{n}" for n in range(1, pieces))])
    torch.testing.assert_close(logits(tmp_path / "it.onnx", source), expected[0], rtol=1e-4, atol=1e-4)


def test_one_file_and_pieces_are_equal(source, exported, tmp_path, monkeypatch):
    for rounded in (lambda model: rounded_to_8_bits("decoder_model_merged", model), rounded_to_4_bits):
        assert save_onnx(rounded(exported), tmp_path, "whole.onnx") == 0
        with monkeypatch.context() as patch:
            patch.setattr(onnx_graphs, "LARGEST_FILE_BYTES", 1_000)
            assert save_onnx(rounded(exported), tmp_path, "cut.onnx") > 0
        assert torch.equal(logits(tmp_path / "whole.onnx", source), logits(tmp_path / "cut.onnx", source))


def test_an_outline_takes_no_memory_and_knows_its_weights(source):
    outline = Outline(source.checkpoint)
    graph = EmbeddingsDecoder(outline.checkpoint, grouped_attention)
    readers = outline.readers(graph, torch.float16)
    gc.collect()
    assert sum(p.untyped_storage().nbytes() for p in graph.parameters()) <= 4 * len(readers)
    real = EmbeddingsDecoder(source.checkpoint, grouped_attention)
    for name, parameter in real.named_parameters():
        assert torch.equal(readers[name](), parameter.half()), name
        assert graph.get_parameter(name).shape == parameter.shape
