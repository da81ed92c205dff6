"""What is drawn: seed, part, shares. Stored with the shards, so that a run continues only with the same plan."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fastvlm.errors import UsageError
from fastvlm.storage.locks import LOCK_NAME
from fastvlm.storage.whole_files import write_file
from fastvlm_recipes.demo_data.fonts import Split
from fastvlm_recipes.demo_data.kinds import DRAWERS, kind_of

PLAN_FILE = "drawing.json"
_STORED_NAMES = {"num_images": "num_pictures"}  # field -> its key in the file, where they differ
_OWN = (LOCK_NAME, f".{PLAN_FILE}.part")  # files that may exist before the plan is written


@dataclass(frozen=True)
class DrawingPlan:
    """Determines every image, together with the image's number.

    Args:
        seed: of the random numbers, 0 or more.
        split: "train", or "test" for fonts, words, layouts and styles that training never sees.
        num_images: 1 or more.
        shard_size: images a shard; the last one may have fewer.
        mix: kind -> share, any positive numbers.
    """

    seed: int
    split: Split
    num_images: int
    shard_size: int
    mix: Mapping[str, int]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_images // self.shard_size)

    def shard_range(self, shard: int) -> range:
        """Numbers of the images in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def kinds(self) -> dict[str, int]:
        """Number of images of each kind."""
        counts = Counter(kind_of(self.seed, self.split, index, self.mix) for index in range(self.num_images))
        return {kind: counts[kind] for kind in self.mix}


def parse_mix(text: str) -> dict[str, int]:
    """``shapes=34,word=40`` -> shares by kind.

    Raises:
        UsageError: an unknown kind, or a share that is not a positive whole number.
    """
    mix: dict[str, int] = {}
    for part in text.split(","):
        kind, _, share = part.strip().partition("=")
        if kind not in DRAWERS:
            near = difflib.get_close_matches(kind, DRAWERS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"--mix names {kind!r}; expected kinds of {', '.join(DRAWERS)}.{hint}")
        if not share.isdecimal() or int(share) < 1:
            raise UsageError(f"--mix gives {kind} {share!r}; expected a whole number above 0: {kind}=20.")
        mix[kind] = int(share)
    return mix


def claim_target(target: Path, plan: DrawingPlan) -> None:
    """Write the plan into a new folder, or check that it has shards of the same one (as many images, or fewer).

    Args:
        target: a folder that the caller has locked.
        plan: what is to be drawn.

    Raises:
        UsageError: it holds something else, or shards of another plan.
    """
    file = target / PLAN_FILE
    if not file.is_file():
        if any(path.name not in _OWN for path in target.iterdir()):
            raise UsageError(
                f"{target} is not empty and has no {PLAN_FILE}; expected a new folder, or one begun before."
            )
    else:
        _check_same(file, plan)
    stored = {_STORED_NAMES.get(name, name): value for name, value in asdict(plan).items()}
    write_file(file, json.dumps(stored, indent=1) + "\n")


def _check_same(file: Path, plan: DrawingPlan) -> None:
    """Raise unless the earlier plan draws the same; remove its last shard if the new plan continues it."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        earlier = DrawingPlan(**{name: stored.pop(_STORED_NAMES.get(name, name)) for name in asdict(plan)}, **stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}); name another folder, or remove this one.") from error
    for name, now in asdict(plan).items():
        before = asdict(earlier)[name]
        if name != "num_images" and before != now:
            raise UsageError(f"{file.parent} was begun with {name} {before}, not {now}; use that, or another folder.")
    if earlier.num_images > plan.num_images:
        raise UsageError(f"{file.parent} was begun with {earlier.num_images} images; expected as many or more.")
    if earlier.num_images < plan.num_images and earlier.num_images % plan.shard_size:
        (file.parent / shard_name(earlier.num_shards - 1)).unlink(missing_ok=True)


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.tar"
