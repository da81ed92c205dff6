"""The digest of a base: the same in every dtype and layout of the same weights, another for any other weights."""

import apple_layout
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastvlm
from fastvlm.hf.base_digest import BaseDigest
from fastvlm.hf.lora import sharing_copy


def exact(model):
    return BaseDigest.of_model(model, is_exact=True)


def test_every_dtype_that_the_weights_are_opened_in_agrees():
    stored = exact(tiny.model())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert stored.agrees_with(tiny.model().to(dtype)) is True
    mixed = tiny.model()
    mixed.model.language_model.half()  # as fastvlm.load does for float16: the encoder stays in float32
    assert stored.agrees_with(mixed) is True


def test_weights_stored_in_bfloat16_agree_in_every_dtype():
    stored = tiny.model().to(torch.bfloat16)
    digest = exact(stored)
    for dtype in (torch.float32, torch.float16):
        assert digest.agrees_with(tiny.model().to(torch.bfloat16).to(dtype)) is True


def test_what_was_rounded_on_opening_does_not_vouch_for_float16():
    digest = BaseDigest.of_model(tiny.model().to(torch.bfloat16), is_exact=False)
    assert digest.float16 is None and digest.agrees_with(tiny.model().half()) is None
    assert digest.agrees_with(tiny.model()) is True and digest.same_as(exact(tiny.model()))


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "language_model.layers.1", "running_var"])
def test_any_part_that_changed_is_seen(part):
    digest, other = exact(tiny.model()), tiny.model()
    names = [name for name, tensor in other.state_dict().items() if part in name and tensor.is_floating_point()]
    assert names
    with torch.no_grad():
        other.state_dict()[names[-1]].mul_(1.02).add_(0.02)
    assert digest.agrees_with(other) is False and not digest.same_as(exact(other))


def test_token_tables_do_not_count():
    other = tiny.model()
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1)
    assert exact(tiny.model()).agrees_with(other) is True


def test_a_copy_on_the_same_memory_agrees():
    model = tiny.model()
    assert exact(model).agrees_with(sharing_copy(model)) is True


def test_both_layouts_of_the_same_weights_agree(tmp_path):
    apple = apple_layout.write_apple_folder(tmp_path / "apple", apple_layout.tokenized_model())
    first, processor = fastvlm.load(apple, device="cpu", dtype="float32")
    first.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    second, _ = fastvlm.load(tmp_path / "ours", device="cpu", dtype="bfloat16")
    assert exact(first).agrees_with(second) is True


@given(
    st.integers(1, 300),
    st.integers(1, 3),
    st.floats(0.25, 4, width=16),
)
def test_a_changed_matrix_is_seen_whatever_its_size(columns, rows, by):
    first, second = nn.Linear(columns, rows), nn.Linear(columns, rows)
    second.load_state_dict(first.state_dict())
    digest = exact(first)
    assert digest.agrees_with(second) is True
    with torch.no_grad():
        second.weight += by * 8
    assert digest.agrees_with(second) is False


def test_what_is_written_is_read(tmp_path):
    digest = exact(nn.Linear(3, 2))
    (tmp_path / "x.json").write_text(digest.as_text())
    assert BaseDigest.read(tmp_path / "x.json") == digest and BaseDigest.read(tmp_path / "y.json") is None
