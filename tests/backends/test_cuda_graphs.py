"""Work on buffers of fixed shape equals the usual one; on a GPU it is captured, which `make gpu-check` tries."""

import engines
import gpu_check
import pytest
import tiny
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fastvlm.backends import cuda_graphs as fixed_shapes
from fastvlm.backends.cuda_graphs import FixedShapes, GraphedDecode, GraphedEncode, attention_lengths
from fastvlm.engine.types import SamplingParams

CPU = torch.device("cpu")


def test_a_result_is_overwritten_by_the_next():
    """As a graph's is: whoever keeps one has to copy it."""
    double = FixedShapes(lambda x: 2 * x, (3,), torch.float32, CPU)
    first = double(torch.tensor([1.0, 2.0, 3.0]))
    assert first.tolist() == [2, 4, 6] and not double.is_captured
    double(torch.zeros(3))
    assert first.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("context", "lengths"), [(64, [64]), (256, [256]), (257, [256, 257]), (1000, [256, 512, 1000])]
)
def test_lengths_of_attention(context, lengths):
    assert attention_lengths(context) == lengths


def test_steps_are_kept_by_rows_and_length():
    seen = []

    def step(rows, length):
        seen.append((rows.tolist(), length))
        return rows.float().sum(0)[:, None]

    decode = GraphedDecode(step, 1000, CPU)
    assert decode([7], [1], [255]).tolist() == [[263]]
    assert decode([7, 8], [1, 0], [3, 256]).tolist() == [[11], [264]]
    assert decode([9], [0], [4]).tolist() == [[13]]
    assert seen == [([[7], [1], [255]], 256), ([[7, 8], [1, 0], [3, 256]], 512), ([[9], [0], [4]], 256)]
    assert len(decode._steps) == 2 and decode.num_captured == 0


def test_rows_of_repeated_slots_are_filled_up_to_a_power_of_two():
    seen = []

    def step(rows, length):
        seen.append(rows.tolist())
        return rows.float().sum(0)[:, None]

    decode = GraphedDecode(step, 1000, CPU)
    assert decode([7, 8, 9], [1, 1, 0], [3, 4, 6]).tolist() == [[11], [13], [15]]
    assert decode([7, 8], [1, 1], [3, 4]).tolist() == [[11], [13]]
    assert seen == [[[7, 8, 9, 9], [1, 1, 0, 0], [3, 4, 6, 6]], [[7, 8], [1, 1], [3, 4]]]


def test_encoded_images_are_tensors_of_their_own_and_few_shapes_are_kept():
    encode = GraphedEncode(lambda pixels: pixels.flatten(2).transpose(1, 2), CPU)
    images = [torch.rand(1, 3, side, 2) for side in range(1, 9)]
    embeds = [encode(image) for image in images] + [encode(torch.zeros(1, 3, 1, 2))]
    for image, own in zip(images, embeds, strict=False):
        assert torch.equal(own, image.flatten(2).transpose(1, 2))
    assert len(encode._kept) == fixed_shapes._KEPT_IMAGE_SHAPES


def test_the_engine_says_what_generate_says(model, make_engine, question, drain, short):
    """Alone, side by side, joined late, with images, over a prefix; nothing is taken from an overwritten buffer."""
    engine = make_engine(has_fixed_shapes=True)
    sides = [question("titt", seed=3), question("ttttt", seed=4), question("tiitt", seed=5), question("titt", seed=3)]
    expected = [side.generated(model) for side in sides]
    assert engine.generate(sides[0].inputs, short).token_ids == expected[0]
    ids = [engine.submit(side.inputs, short) for side in sides[:2]]
    engine.step()
    engine.step()
    ids += [engine.submit(side.inputs, short) for side in sides[2:]]
    _, last = drain(engine)
    assert [tuple(last[i].completion.token_ids) for i in ids] == expected


def test_sampling_and_logprobs_are_the_same(make_engine, question):
    params = SamplingParams(max_new_tokens=10, temperature=0.9, seed=7, logprobs=3)
    side = question("titt", seed=3)
    usual = make_engine().generate(side.inputs, params)
    fixed = make_engine(has_fixed_shapes=True).generate(side.inputs, params)
    assert fixed.token_ids == usual.token_ids


def test_replies_longer_than_one_length_of_attention(monkeypatch, model, make_engine, question, short):
    monkeypatch.setattr(fixed_shapes, "_SHORTEST_TOKENS", 8)
    side = question("titt", seed=3)
    engine = make_engine(has_fixed_shapes=True)
    assert engine.generate(side.inputs, short).token_ids == side.generated(model)
    assert len(engine.backend.decoder.fixed._steps) > 1


@torch.inference_mode()
def test_a_step_recorded_once_serves_other_tokens_slots_and_positions(model):
    """A graph in all but the GPU: operations on tensors alone are recorded and run again; numbers would be frozen."""
    recorded, usual = engines.decoder(model, 3, 64, has_fixed_shapes=True), engines.decoder(model, 3, 64)
    for slot in range(3):
        for decoder in (recorded, usual):
            engines.prefilled(decoder, decoder.embed(tiny.prompt("t" * (5 + slot), seed=slot)), slot)
    at_first = torch.tensor([[9, 9], [0, 1], [5, 6]])
    step = make_fx(lambda rows: recorded._fixed_step(rows, 64))(at_first)
    for rows in ([[7, 8], [0, 1], [5, 6]], [[30, 4], [2, 0], [7, 6]], [[6, 5], [1, 2], [7, 8]]):
        torch.testing.assert_close(step(torch.tensor(rows)), usual.decode(*rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("check", gpu_check.CHECKS, ids=lambda check: check.__name__)
def test_what_is_checked_on_a_gpu_holds_on_a_cpu(check):
    check("cpu")
