"""Layouts of receipts: rows from the top, each with its content and place. Some are held out of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["shop", "date", "items", "total", "rule"]
# center, left, right: one run of text. split: name left, amount right; swapped: the amount first.
Place = Literal["center", "left", "right", "split", "swapped"]


@dataclass(frozen=True)
class Row:
    """One row (of `items`: one for each); `scale` is its height relative to a plain row, `is_boxed`: light on dark."""

    part: Part
    place: Place = "center"
    scale: float = 1.0
    is_boxed: bool = False


Layout = tuple[Row, ...]
_RULE = Row("rule", scale=0.35)
_ITEMS, _ITEMS_SWAPPED = Row("items", "split"), Row("items", "swapped")

SEEN_LAYOUTS: dict[str, Layout] = {
    "classic": (Row("shop", scale=1.2), Row("date", scale=0.9), _ITEMS, _RULE, Row("total", "split", 1.2)),
    "till": (Row("shop", "left", 1.2), _ITEMS, _RULE, Row("total", "split", 1.2), Row("date", "left", 0.9)),
    "invoice": (Row("date", "right", 0.9), Row("shop", "left", 1.1), _ITEMS, Row("total", "split", 1.3, is_boxed=True)),
    "price_first": (Row("shop"), _ITEMS_SWAPPED, _RULE, Row("total", "swapped", 1.2), Row("date")),
    "ticket": (Row("shop", scale=1.2, is_boxed=True), Row("total", scale=1.2), _ITEMS, Row("date", scale=0.9)),
    "shop_last": (_ITEMS, _RULE, Row("total", "split", 1.1), Row("date", "right"), Row("shop", scale=1.1)),
    "summary": (Row("date"), Row("total", "left", 1.2), _RULE, _ITEMS, Row("shop", "left")),
}
# Frozen: never drawn in training.
HELD_OUT_LAYOUTS: dict[str, Layout] = {
    "total_first": (Row("total", "split", 1.3), _RULE, Row("shop", scale=1.1), _ITEMS, Row("date", "left", 0.9)),
    "headed": (Row("shop", "left", 1.1, is_boxed=True), Row("date", "right", 0.9), Row("total", "right", 1.3), _ITEMS),
    "boxed_middle": (Row("date", "left"), _ITEMS_SWAPPED, Row("total", scale=1.2, is_boxed=True), Row("shop", "right")),
}
LAYOUTS: dict[str, Layout] = {**SEEN_LAYOUTS, **HELD_OUT_LAYOUTS}
