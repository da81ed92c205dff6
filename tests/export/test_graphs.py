"""The three graphs equal the model, padded batches included; half precision keeps its norms in float32."""

import pytest
import tiny
import torch

from fastvlm.export.decoder import EmbeddingsDecoder, TokenDecoder, expanded_attention, grouped_attention
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, halved, largest_activation
from fastvlm.hf.processor import FastVlmProcessor


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    class NoProcessor(FastVlmProcessor):
        def __init__(self):
            pass

    return model.to_checkpoint(NoProcessor())


@torch.no_grad()
def test_images_to_visual_tokens(model, checkpoint):
    pixels = tiny.images(3)
    expected = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(VisionGraph(checkpoint)(pixels), torch.stack(list(expected)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [grouped_attention, expanded_attention])
@torch.no_grad()
def test_logits_of_padded_batches_in_two_calls(model, checkpoint, attention):
    batch = tiny.batch([tiny.prompt("tttttt", seed=1), tiny.prompt("ttt", seed=2)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model(input_ids=ids, attention_mask=mask).logits
    decoder = EmbeddingsDecoder(checkpoint, attention)
    embeds, positions = EmbeddingGraph(checkpoint)(ids), (mask.cumsum(-1) - 1).clamp_min(0)
    cut = 4
    first, *cache = decoder(embeds[:, :cut], mask[:, :cut], positions[:, :cut], *decoder.empty_cache(2))
    second, *cache = decoder(embeds[:, cut:], mask, positions[:, cut:], *cache)
    found = torch.cat((first, second), dim=1)
    is_text = mask.bool()
    torch.testing.assert_close(found[is_text], expected[is_text], rtol=1e-4, atol=1e-4)
    if attention is grouped_attention:
        assert found.isfinite().all()  # of padding too
    assert cache[0].shape == (2, 2, ids.shape[1], 8)


@torch.no_grad()
def test_both_decoders_agree(checkpoint):
    ids = torch.tensor([tiny.prompt("ttttt")])
    positions = torch.arange(5)[None]
    tokens, embeds = TokenDecoder(checkpoint), EmbeddingsDecoder(checkpoint, grouped_attention)
    last = tokens(ids, positions, *tokens.empty_cache(1))[0]
    whole = embeds(EmbeddingGraph(checkpoint)(ids), torch.ones_like(ids), positions, *embeds.empty_cache(1))[0]
    torch.testing.assert_close(whole[:, -1:], last, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_half_precision_has_float32_at_its_ends(checkpoint):
    pixels = tiny.images(1)
    exact = VisionGraph(checkpoint)
    expected = exact(pixels)
    graph = halved(VisionGraph(checkpoint))
    assert {p.dtype for n, p in graph.named_parameters() if ".norm.norm." not in n} == {torch.float16}
    found = graph(pixels)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.01
    decoder = halved(EmbeddingsDecoder(checkpoint, grouped_attention))
    assert decoder.frequencies.dtype == torch.float32
    inputs = torch.randn(1, 3, 32), torch.ones(1, 3, dtype=torch.long), torch.arange(3)[None]
    logits, *cache = decoder(*inputs, *decoder.empty_cache(1))
    assert logits.dtype == torch.float32 and cache[0].dtype == torch.float16
    assert checkpoint.tensors["model.language_model.embed_tokens.weight"].dtype == torch.float32  # the source stays


@torch.no_grad()
def test_the_largest_activation_is_of_all_parts(checkpoint):
    graph = VisionGraph(checkpoint)
    pixels = tiny.images(2)
    largest = largest_activation(graph, pixels)
    assert largest >= float(graph(pixels).abs().max())
    assert not any(module._forward_hooks for module in graph.modules())
