"""Questions about receipts: total, date, shop, items and prices, and the whole as JSON."""

from __future__ import annotations

import json
from random import Random

from fastvlm_recipes.demo_data.scene import Receipt
from fastvlm_recipes.demo_data.wording import ORDINALS, Turn, any_of

TOTAL = (
    "What is the total?", "How much is the total?", "What is the total amount?", "What is the sum?",
    "How much was paid?", "How much is to be paid?", "Read the total.",
)  # fmt: skip
DATE = ("What is the date?", "What is the date of the receipt?", "When was this bought?", "Read the date.")
SHOP = ("What is the name of the shop?", "Which shop is this from?", "What is the shop called?", "Name the shop.")
PRICE_OF = (
    "How much is the {}?",
    "What does the {} cost?",
    "What is the price of the {}?",
    "How much does the {} cost?",
)
COSTS = ("What costs {}?", "Which item costs {}?")
HOW_MANY_ITEMS = ("How many items are there?", "How many items were bought?", "How many things were bought?")
LIST_ITEMS = ("What was bought?", "List the items.", "Which items are on the receipt?")
AS_JSON = ("Give the {} as JSON.", "Return the {} as JSON.", "Write the {} as JSON.")
SEE = ("What do you see?", "What is this?", "What is in the image?", "Describe the image.")


def receipt_turns(rng: Random, receipt: Receipt) -> list[Turn]:
    """Total, shop and date, a price, the JSON, and one other question."""
    names = [name for name, _ in receipt.items]
    prices = [price for _, price in receipt.items]
    name, price = rng.choice(receipt.items)
    turns = [
        (any_of(rng, TOTAL), receipt.total),
        (any_of(rng, DATE), receipt.date),
        (any_of(rng, SHOP), receipt.shop),
        (any_of(rng, PRICE_OF).format(name.lower()), price),
    ]
    if rng.random() < 0.4:
        turns.append(json_turn(rng, receipt))
    index = rng.randrange(len(names))
    extra: list[Turn] = [
        (any_of(rng, HOW_MANY_ITEMS), str(len(names))),
        (any_of(rng, LIST_ITEMS), "\n".join(names)),
        (any_of(rng, (f"What is the {ORDINALS[index]} item?",)), names[index]),
        (any_of(rng, SEE), "A receipt."),
    ]
    if prices.count(price) == 1 and price != receipt.total:
        extra.append((any_of(rng, COSTS).format(price), name))
    return [*turns, *rng.sample(extra, 2)]


def json_turn(rng: Random, receipt: Receipt) -> Turn:
    """One to three fields as a JSON object; amounts are strings, as they are written."""
    fields = {"shop": receipt.shop, "date": receipt.date, "total": receipt.total}
    asked = rng.choice((("total",), ("shop", "total"), ("date", "total"), ("shop", "date", "total")))
    listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
    answer = json.dumps({key: fields[key] for key in asked}, ensure_ascii=False)
    return rng.choice(AS_JSON).format(listed), answer
