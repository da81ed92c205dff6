"""Fashion-MNIST's pieces of clothing, enlarged onto grounds of our own; its official parts for training and test.

Source: Xiao et al. 2017, arXiv 1708.07747, MIT licence; Debian's package dataset-fashion-mnist holds its four files.
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

from fastvlm.demo_data.canvas import SIZE, background, contrasting, jittered, paste
from fastvlm.demo_data.fonts import Split
from fastvlm.demo_data.scene import Scene, Thing
from fastvlm.demo_data.wording import Turn, any_of, sentence, with_article

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
IS_IT = ("Is this {}?", "Is it {}?", "Do you see {}?", "Is there {}?")


def clothes_folder() -> Path | None:
    """Where the four files lie, None if they are not there."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, DEBIAN_FOLDER))
    return folder if (folder / "t10k-images-idx3-ubyte.gz").is_file() else None


@lru_cache(maxsize=2)
def load_clothes(split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(pictures (N, 28, 28), light on black; classes (N,)): 60,000 for training, 10,000 for test.

    Raises:
        FileNotFoundError: the data set is not on this machine.
    """
    folder = clothes_folder()
    if folder is None:
        raise FileNotFoundError("no Fashion-MNIST: install Debian's dataset-fashion-mnist")
    part = "train" if split == "train" else "t10k"
    pictures = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[_IMAGES_HEADER:]
    classes = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[_LABELS_HEADER:]
    return np.frombuffer(pictures, np.uint8).reshape(-1, SIDE, SIDE), np.frombuffer(classes, np.uint8)


def draw_clothes(rng: Random, split: Split) -> Scene:
    """One piece, 120 to 250 px large: as published (light on black), inverted, or in colour on any ground."""
    pictures, classes = load_clothes(split)
    row = rng.randrange(len(pictures))
    side = rng.randint(120, 250)
    mask = Image.fromarray(pictures[row]).resize((side, side), Image.Resampling.BICUBIC)
    left, top = rng.randint(0, SIZE - side), rng.randint(0, SIZE - side)
    roll = rng.random()
    if roll < 0.45:
        picture, ink = Image.new("RGB", (SIZE, SIZE)), (255, 255, 255)
    elif roll < 0.75:
        picture, ink = Image.new("RGB", (SIZE, SIZE), (255, 255, 255)), (0, 0, 0)
    else:
        picture, ground, _ = background(rng)
        ink = jittered(rng, contrasting(rng, ground))
    paste(picture, mask, ink, left, top)
    if rng.random() < 0.3:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = SIZE - side - left
    name = CLOTHES[int(classes[row])]
    scene = Scene(picture, "clothes")
    scene.things.append(Thing("clothing", name, "", left + side / 2, top + side / 2, side))
    return scene


def clothes_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Its name, and whether it is this or that."""
    name = scene.things[0].name
    other = rng.choice([one for one in CLOTHES if one != name])
    turns = [(any_of(rng, NAMING), sentence(with_article(name)))]
    turns.append((any_of(rng, IS_IT).format(with_article(other)), "No"))
    turns.append((any_of(rng, IS_IT).format(with_article(name)), "Yes"))
    return turns
