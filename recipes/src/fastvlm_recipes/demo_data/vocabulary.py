"""Colors, shapes, characters and emoji names that are drawn, and those that are held out of training.

The held-out lists are frozen: changing one makes every published score of the checkpoint meaningless.
"""

from __future__ import annotations

import string

# Center of each color in RGB; `canvas.jittered` moves it a little without crossing into a neighbor.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 220, 30),
    "green": (35, 150, 50),
    "blue": (35, 70, 215),
    "purple": (130, 45, 170),
    "pink": (250, 135, 185),
    "brown": (130, 75, 30),
    "black": (12, 12, 12),
    "white": (248, 248, 248),
    "gray": (128, 128, 128),
    "teal": (0, 140, 140),
}
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)

SHAPE_NAMES: tuple[str, ...] = (
    "circle",
    "square",
    "rectangle",
    "triangle",
    "star",
    "heart",
    "diamond",
    "pentagon",
    "hexagon",
    "cross",
)

# Never drawn in training, so that "a red star" must be composed, not remembered.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("orange", "circle"),
        ("purple", "square"),
        ("pink", "triangle"),
        ("white", "rectangle"),
        ("red", "star"),
        ("blue", "heart"),
        ("green", "diamond"),
        ("yellow", "cross"),
        ("black", "hexagon"),
        ("teal", "pentagon"),
    }
)

ALPHANUMERIC: str = string.digits + string.ascii_uppercase + string.ascii_lowercase
PUNCTUATION: str = "$€£.,:-/%!?#&+'"
GLYPHS: str = ALPHANUMERIC + PUNCTUATION

# answer -> the emoji (icon names shared by the sets) that show it. Few, because the first edition saw few images.
EMOJI: dict[str, tuple[str, ...]] = {
    answer: tuple(names.split())
    for answer, names in (
        entry.split(": ")
        for entry in """dog: dog dog-face
cat: cat cat-face
lion: lion
pig: pig pig-face
elephant: elephant
rabbit: rabbit rabbit-face
panda: panda
frog: frog
whale: whale spouting-whale
fish: fish tropical-fish
butterfly: butterfly
bee: honeybee
rose: rose
sunflower: sunflower
tree: deciduous-tree evergreen-tree
cactus: cactus
grapes: grapes
lemon: lemon
banana: banana
apple: red-apple green-apple
strawberry: strawberry
carrot: carrot
bread: bread
pizza: pizza
egg: egg cooking
cake: birthday-cake shortcake
house: house house-with-garden
train: locomotive train
bus: bus oncoming-bus
car: automobile oncoming-automobile
bicycle: bicycle
airplane: airplane small-airplane
rocket: rocket
moon: crescent-moon
sun: sun
cloud: cloud
umbrella: umbrella umbrella-with-rain-drops
snowman: snowman snowman-without-snow
balloon: balloon
bell: bell
guitar: guitar
book: closed-book open-book green-book blue-book
scissors: scissors
key: key old-key""".splitlines()
    )
}
EMOJI_NAMES: tuple[str, ...] = tuple(EMOJI)
EMOJI_STYLES: tuple[str, ...] = ("noto", "fluent-emoji-flat", "twemoji")
HELD_OUT_STYLE: str = "openmoji"
