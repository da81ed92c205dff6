"""Rows of different lengths in one batch: padding that is never attended to nor learned, images in order."""

import pytest
import torch

from fastvlm.errors import DataError
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import IGNORED


def row(*ids, images=()):
    pixels = {"pixel_values": torch.stack([torch.full((3, 2, 2), float(p)) for p in images])} if images else {}
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids), **pixels}


def test_rows_are_padded_on_the_right():
    batch = Collator(pad_token_id=9)([row(1, 2), row(3, 4, 5, 6)])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [3, 4, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[1, 2, IGNORED, IGNORED], [3, 4, 5, 6]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert "pixel_values" not in batch


def test_an_id_that_equals_the_padding_is_attended_to():
    batch = Collator(pad_token_id=9)([row(9, 9), row(1, 2, 3)])
    assert batch["attention_mask"][0].tolist() == [1, 1, 0] and batch["labels"][0].tolist() == [9, 9, IGNORED]


def test_images_of_all_rows_stand_in_their_order():
    batch = Collator()([row(1, images=[4]), row(2), row(3, images=[5, 6])])
    assert batch["pixel_values"].shape == (3, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [4.0, 5.0, 6.0]


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="Got no rows"):
        Collator()([])
