"""The joint: every placeholder's row is the right image's right feature, or an error that says both numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import ImageTokenMismatchError
from fastvlm.model.joint import join_image_and_text

WIDTH = 3
prompts = st.lists(st.text("ti", min_size=1, max_size=6), min_size=1, max_size=5)


def lay_out(layouts, tokens_per_image, side):
    """Per row, what each position is: None for padding, "t", or (image of the batch, its token)."""
    rows, image = [], 0
    for layout in layouts:
        row = []
        for letter in layout:
            if letter == "t":
                row.append("t")
            else:
                row.extend((image, token) for token in range(tokens_per_image))
                image += 1
        rows.append(row)
    width = max(map(len, rows))
    pad = [[None] * (width - len(row)) for row in rows]
    return [p + r if side == "left" else r + p for p, r in zip(pad, rows, strict=True)], image


@given(layouts=prompts, tokens_per_image=st.integers(1, 5), side=st.sampled_from(["left", "right"]))
def test_every_row_is_the_right_one(layouts, tokens_per_image, side):
    rows, num_images = lay_out(layouts, tokens_per_image, side)
    text = torch.rand(len(rows), len(rows[0]), WIDTH)
    features = torch.rand(num_images, tokens_per_image, WIDTH) + 10
    mask = torch.tensor([[isinstance(cell, tuple) for cell in row] for row in rows])
    joined = join_image_and_text(text, features, mask)
    for b, row in enumerate(rows):
        for t, cell in enumerate(row):
            expected = features[cell] if isinstance(cell, tuple) else text[b, t]
            assert torch.equal(joined[b, t], expected), (b, t, cell)


def mask_of(*counts, width=12):
    return torch.tensor([[True] * count + [False] * (width - count) for count in counts])


@pytest.mark.parametrize(
    ("counts", "num_images", "said"),
    [
        # Batch totals match in both; a check of totals alone would mix the samples' images.
        ((6, 2), 2, r"Sample 0 of the batch has 6 <image> tokens, which is not a multiple of the 4"),
        ((4, 5, 3), 3, r"Sample 1 of the batch has 5 <image> tokens, which is not a multiple of the 4"),
        ((4, 4), 1, r"tokens: 8, features: 4\. The samples have 4, 4 <image> tokens; 1 image\(s\) give 4"),
        ((4, 0), 2, r"tokens: 4, features: 8\. The samples have 4, 0 <image> tokens; 2 image\(s\)"),
        ((0, 0), 1, r"tokens: 0, features: 4\. The samples have 0, 0"),
        ((8,), 1, r"tokens: 8, features: 4"),
    ],
)
def test_wrong_counts_are_told_per_sample(counts, num_images, said):
    text, features = torch.zeros(len(counts), 12, WIDTH), torch.zeros(num_images, 4, WIDTH)
    with pytest.raises(ImageTokenMismatchError, match=said):
        join_image_and_text(text, features, mask_of(*counts))


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=4), num_images=st.integers(1, 6))
def test_accepts_exactly_whole_images_that_add_up(counts, num_images):
    text, features = torch.zeros(len(counts), 12, WIDTH), torch.ones(num_images, 4, WIDTH)
    fits = all(count % 4 == 0 for count in counts) and sum(counts) == 4 * num_images
    try:
        joined = join_image_and_text(text, features, mask_of(*counts))
    except ImageTokenMismatchError:
        assert not fits
    else:
        assert fits
        assert joined.sum() == num_images * 4 * WIDTH


def test_features_take_the_texts_dtype_and_the_text_is_left_alone():
    text = torch.zeros(1, 12, WIDTH, dtype=torch.bfloat16)
    joined = join_image_and_text(text, torch.ones(1, 4, WIDTH), mask_of(4))
    assert joined.dtype == torch.bfloat16
    assert text.sum() == 0


def test_gradients_reach_images_and_text_each_at_its_place():
    text = torch.zeros(1, 12, WIDTH, requires_grad=True)
    features = torch.zeros(1, 4, WIDTH, requires_grad=True)
    join_image_and_text(text, features, mask_of(4)).sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))
    assert torch.equal(text.grad[0, :, 0] == 0, mask_of(4)[0])
