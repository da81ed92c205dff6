"""Fashion-MNIST's pieces of clothing, enlarged onto drawn backgrounds; its official training and test parts.

Source: Xiao et al. 2017, arXiv 1708.07747, MIT license; Debian's package dataset-fashion-mnist holds its four files.
"""

from __future__ import annotations

import gzip
import os
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastvlm_recipes.demo_data.canvas import RGB, SIZE, background, contrasting, jittered, paste
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.wording import Turn, any_of, names_listed, sentence, with_article

CLOTHES: tuple[str, ...] = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FOLDER_VARIABLE = "FASTVLM_FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28
_IMAGES_HEADER, _LABELS_HEADER = 16, 8  # bytes of an idx file before its numbers

NAMING = (
    "What is this?", "What do you see?", "What is in the image?", "What is shown here?",
    "What piece of clothing is this?",
    "Which piece of clothing is this?", "What kind of clothing is this?", "Name the piece of clothing.",
)  # fmt: skip
IS_IT = ("Is it {}?", "Do you see {}?", "Can you see {}?")  # the first only for a single piece
_HALF = SIZE // 2
# Number of pieces -> (left, top, right, bottom) of each place in px, and how a question names each place.
CELLS: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    1: ((0, 0, SIZE, SIZE),),
    2: ((0, 0, _HALF, SIZE), (_HALF, 0, SIZE, SIZE)),
    4: (
        (0, 0, _HALF, _HALF),
        (_HALF, 0, SIZE, _HALF),
        (0, _HALF, _HALF, SIZE),
        (_HALF, _HALF, SIZE, SIZE),
    ),
}
PLACES: dict[int, tuple[str, ...]] = {
    2: ("on the left", "on the right"),
    4: ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
}


def clothes_folder() -> Path | None:
    """The folder of the four files, None if they are not there."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, DEBIAN_FOLDER))
    return folder if (folder / "t10k-images-idx3-ubyte.gz").is_file() else None


@lru_cache(maxsize=2)
def load_clothes(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(images (N, 28, 28), light on black; classes (N,)): 60,000 for training, 10,000 for test.

    Raises:
        FileNotFoundError: the data set is not on this machine.
    """
    folder = clothes_folder()
    if folder is None:
        raise FileNotFoundError("no Fashion-MNIST: install Debian's dataset-fashion-mnist")
    part = "train" if split == "train" else "t10k"
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[_IMAGES_HEADER:]
    classes = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[_LABELS_HEADER:]
    return np.frombuffer(images, np.uint8).reshape(-1, SIDE, SIDE), np.frombuffer(classes, np.uint8)


def draw_clothes(rng: Random, split: Split, count: int | None = None) -> Scene:
    """One piece, two side by side or four in a square (random if None), each 100 to 250 px large.

    As published (light on black), inverted, or in color on any background.
    """
    images, classes = load_clothes(split)
    if count is None:
        count = rng.choices((1, 2, 4), (60, 22, 18))[0]
    image, ink = _ground(rng)
    scene = Scene(image, "clothes")
    for left, top, right, bottom in CELLS[count]:
        row = rng.randrange(len(images))
        side = rng.randint(120, 250) if count == 1 else rng.randint(100, 128)
        piece = Image.fromarray(images[row]).resize((side, side), Image.Resampling.BICUBIC)
        if rng.random() < 0.3:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corner = rng.randint(left, right - side), rng.randint(top, bottom - side)
        paste(image, piece, ink, *corner)
        name = CLOTHES[int(classes[row])]
        scene.things.append(Thing("clothing", name, "", corner[0] + side / 2, corner[1] + side / 2, side))
    return scene


def _ground(rng: Random) -> tuple[Image.Image, RGB]:
    """Background, and color of the pieces."""
    roll = rng.random()
    if roll < 0.45:
        return Image.new("RGB", (SIZE, SIZE)), (255, 255, 255)
    if roll < 0.75:
        return Image.new("RGB", (SIZE, SIZE), (255, 255, 255)), (0, 0, 0)
    image, ground, _ = background(rng)
    return image, jittered(rng, contrasting(rng, ground))


def clothes_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Names, by place where there are several, and whether a piece is there."""
    names = [thing.name for thing in scene.things]
    other = rng.choice([one for one in CLOTHES if one not in names])
    turns = [(any_of(rng, IS_IT[len(names) > 1 :]).format(with_article(other)), "No")]
    turns.append((any_of(rng, IS_IT[len(names) > 1 :]).format(with_article(rng.choice(names))), "Yes"))
    if len(names) == 1:
        return [(any_of(rng, NAMING), sentence(with_article(names[0]))), *turns]
    for place, name in zip(PLACES[len(names)], names, strict=True):
        turns.append(
            (any_of(rng, ("What is {}?", "What piece of clothing is {}?")).format(place), sentence(with_article(name)))
        )
    if len(names) == 2:
        turns.append((any_of(rng, ("What do you see?", "Describe the image.")), sentence(names_listed(names))))
    else:
        turns.append(("How many pieces of clothing are there?", str(len(names))))
    return turns
