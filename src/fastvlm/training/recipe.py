"""Recipes: YAML files that define a training run; every key is checked before anything is opened.

A rate is a number or the word ``frozen``; lengths are in tokens, sides in pixels, times in minutes.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.training.recipe_errors import complaint, nearest_key

try:
    from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
except ImportError as error:
    raise MissingExtraError("pydantic", "train", "fastvlm train") from error

Part = Literal["encoder", "projector", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "projector", "decoder")
SHIPPED = Path(__file__).with_name("recipes")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _frozen_or_rate(value: Any) -> Any:
    """``frozen`` for ``{lr: frozen}``, and a bare number for ``{lr: number}``."""
    return value if isinstance(value, dict) else {"lr": value}


class PartEntry(_Entry):
    """How one part of the model learns.

    Args:
        lr: the rate at its peak; "frozen" for a part that stays as it is.
        batchnorm: "frozen" keeps the running statistics, as a fused network must; "train" moves them, as a network from
            scratch needs. Of the encoder only; a frozen encoder's never move.
    """

    lr: Annotated[float, Field(gt=0)] | Literal["frozen"]
    batchnorm: Literal["frozen", "train"] = "frozen"

    @property
    def is_frozen(self) -> bool:
        """True if no weight of the part changes."""
        return self.lr == "frozen"

    @property
    def rate(self) -> float:
        """The rate at its peak; 0 for a frozen part."""
        return 0.0 if isinstance(self.lr, str) else self.lr


def _path_or_entry(value: Any) -> Any:
    return {"path": str(value)} if isinstance(value, (str, Path)) else value


class DataEntry(_Entry):
    """One source of samples.

    Args:
        path: a file or folder as :func:`fastvlm.training.data.samples.open_samples` takes it.
        images_in: the folder that its images' paths start from.
        repeat: how often each sample is seen in an epoch; 0.5 takes half of them, drawn by the seed.
        ignore: columns, keys of turns, and kinds of members of shards that are left out though they are not known.
    """

    path: str
    images_in: str | None = Field(default=None, validation_alias=AliasChoices("images_in", "pictures_in"))  # 0.1's name
    repeat: Annotated[float, Field(gt=0)] = 1.0
    ignore: tuple[str, ...] = ()


class LoraEntry(_Entry):
    """LoRA adapters; the defaults are those of Apple's code (ml-fastvlm at 592b4ad, train.py).

    Args:
        r, alpha, dropout: rank, scale (``alpha / r``), dropout before the first matrix.
        parts: where they go; a part that is not named here learns as `parts` of the recipe say.
        merge: write the whole model at the end; False: the adapter alone.
    """

    r: Annotated[int, Field(ge=1)] = 64
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    parts: tuple[Part, ...] = ("decoder",)
    merge: bool = False


class HeadsEntry(_Entry):
    """Attention heads of one decoder layer, both counted from 0."""

    layer: Annotated[int, Field(ge=0)]
    heads: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class GroundingEntry(_Entry):
    """Losses in addition to the text loss, for records with `objects` and `looks` (docs/training_data.md).

    Args:
        objects: weight of the object classification loss on 16 px cells; 0: off. Needs names.json next to the data.
        looks: weight of the attention loss; 0: off.
        reminding: heads trained to attend to the question's words that identify the object.
        looking: heads of a later layer, trained to attend to the object's visual tokens.
    """

    objects: Annotated[float, Field(ge=0)] = 0.5
    looks: Annotated[float, Field(ge=0)] = 0.3
    reminding: HeadsEntry = HeadsEntry(layer=1, heads=(0, 1))
    looking: HeadsEntry = HeadsEntry(layer=3, heads=(0, 1))


class EvalEntry(_Entry):
    """Samples on which the loss is measured and nothing is learned.

    Args:
        data: sources of their own; or
        fraction: of the training samples, taken out of them by the seed.
        every: steps between two measurements; 0: only at the end.
    """

    data: tuple[Annotated[DataEntry, BeforeValidator(_path_or_entry)], ...] = ()
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    every: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_one(self) -> EvalEntry:
        if bool(self.data) == (self.fraction is not None):
            raise ValueError("expected either data or fraction")
        return self


class TestEntry(_Entry):
    """Questions that are asked when training is done, named as `fastvlm eval` names them; the card has their scores.

    Args:
        suite: "mini", the questions that come with the package; or
        task: a benchmark's name, or "plain".
        data, images: the task's file or folder, and where its images are.
        metric: of "plain".
        limit: at most so many questions of each test.
    """

    __test__ = False  # pytest takes classes called Test... for tests

    suite: str | None = None
    task: str | None = None
    data: str | None = None
    images: str | None = None
    metric: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


PartOption = Annotated[PartEntry, BeforeValidator(_frozen_or_rate)]


class PartsEntry(_Entry):
    """The three parts; the paper trains all of them in every stage but the first."""

    encoder: PartOption = PartEntry(lr="frozen")
    projector: PartOption = PartEntry(lr=2e-5)
    decoder: PartOption = PartEntry(lr=2e-5)

    def of(self, part: Part) -> PartEntry:
        """The entry of one part."""
        entry: PartEntry = getattr(self, part)
        return entry


class Recipe(_Entry):
    """A whole run. `data` may come from the command line, everything else has a default.

    Args:
        name: of the run; its folder is called after it.
        model: the checkpoint to begin from: "mini", a folder, a Hub name.
        from_scratch: keep only the model's sizes and tokenizer: random weights, a multi-branch encoder.
        data, eval: samples.
        grounding: auxiliary losses for records with object positions; None: text loss only.
        image_size: side in pixels, or [height, width]; None for the checkpoint's.
        parts, lora: who learns, and how fast.
        base_bits: of the frozen weights under adapters: 16 as they are, 8 or 4 (needs `lora`).
        batch_size: samples a step, over all processes and accumulated micro-batches.
        micro_batch_size: samples that are computed at once in a process.
        epochs, max_steps: how long; `max_steps` wins.
        warmup_ratio, schedule: share of the steps over which the rates rise; how they fall to 0 then, "constant": not.
        weight_decay: not for norms, biases and layer scales.
        betas: of AdamW.
        max_grad_norm: gradients above are scaled down; 0: never.
        max_tokens: of a sample, its visual tokens included.
        dtype: "auto" is bfloat16 arithmetic on a GPU that has it, else float32; weights that learn are float32.
        gradient_checkpointing: compute activations again in the backward pass: less memory, about a third more time.
        ema: decay of an average of the weights, which is what the final folder then holds; None: no average.
        seed: of everything that is drawn.
        save_every_steps, save_every_minutes: between checkpoints; whichever comes first.
        log_every: steps that one line of the log averages.
        workers: processes that read images.
        tests: questions for the folder that was written; their scores stand in its card.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    model: str = "mini"
    from_scratch: bool = False
    data: tuple[Annotated[DataEntry, BeforeValidator(_path_or_entry)], ...] = ()
    image_size: Annotated[int, Field(ge=64)] | tuple[int, int] | None = None
    parts: PartsEntry = PartsEntry()
    lora: LoraEntry | None = None
    grounding: GroundingEntry | None = None
    base_bits: Literal[16, 8, 4] = 16
    batch_size: Annotated[int, Field(ge=1)] = 128
    micro_batch_size: Annotated[int, Field(ge=1)] = 8
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Annotated[int, Field(ge=8)] = 8192
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every_steps: Annotated[int, Field(ge=1)] = 500
    save_every_minutes: Annotated[float, Field(gt=0)] = 30.0
    log_every: Annotated[int, Field(ge=1)] = 10
    eval: EvalEntry | None = None
    workers: Annotated[int, Field(ge=0)] = 2
    tests: tuple[TestEntry, ...] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        if self.base_bits != 16 and self.lora is None:
            raise ValueError(f"base_bits is {self.base_bits}, which only a frozen base under lora can have")
        if self.lora is None and all(self.parts.of(part).is_frozen for part in PARTS):
            raise ValueError("all three parts are frozen and there is no lora: nothing would be trained")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.lora is not None:
            self._check_beside(self.lora)
        if self.grounding is not None:
            self._check_grounding(self.grounding)
        return self

    def _check_grounding(self, grounding: GroundingEntry) -> None:
        """Raise ValueError where the other objectives do not go with the rest."""
        if self.gradient_checkpointing:
            raise ValueError("grounding reads what gradient_checkpointing throws away; leave one of them out")
        if grounding.objects and not self.learns("encoder"):
            raise ValueError("grounding.objects teaches the encoder, which is frozen; set grounding.objects=0")
        if grounding.looks and not self.learns("decoder"):
            raise ValueError("grounding.looks teaches the decoder, which is frozen; set grounding.looks=0")

    def _check_beside(self, lora: LoraEntry) -> None:
        """Raise ValueError where adapters do not go with the rest."""
        for part in lora.parts:
            if self.parts.of(part).is_frozen:
                raise ValueError(f"lora.parts names {part}, whose adapters need a rate: parts.{part}.lr")
        if self.learns("decoder"):
            raise ValueError("with lora the decoder either has adapters or is frozen: parts.decoder.lr=frozen")
        if self.from_scratch:
            raise ValueError("from_scratch and lora do not go together, because adapters need trained weights")
        if self.ema is not None:
            raise ValueError("ema averages whole weights; with lora leave it out")
        if self.grounding is not None:
            raise ValueError("grounding teaches whole weights; with lora leave it out")

    def learns(self, part: Part) -> bool:
        """True if a part's own weights are trained; its adapters do not count."""
        has_adapters = self.lora is not None and part in self.lora.parts
        return not has_adapters and not self.parts.of(part).is_frozen

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, as JSON and YAML have them."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """A file that :func:`read_recipe` reads as this recipe."""
        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem)}


def read_recipe(name_or_file: str | Path, changes: dict[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, or a shipped one by its name, with `changes` on top.

    Args:
        name_or_file: a path, or a name that :func:`shipped_recipes` has; a file of that name wins.
        changes: dotted keys and their values: ``{"parts.encoder": "frozen", "batch_size": 32}``.

    Raises:
        UsageError: no such file, no YAML, an unknown key, a value that cannot be, keys that do not go together.
    """
    file = _file_of(str(name_or_file))
    content = _content_of(file)
    content.setdefault("name", file.stem)
    for key, value in (changes or {}).items():
        _put(content, key.split("."), value)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{file}: {complaint(error.errors(), _nearest)}") from None


def _file_of(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"There is no recipe {name!r}: no such file, and the shipped ones are {', '.join(shipped)}.{hint}")


def _content_of(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UsageError(
            f"{file} is not valid YAML: {where}. A recipe is keys and values, as `fastvlm train --recipes` shows."
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}; expected keys and values, such as 'model: mini'.")
    return content


def _put(content: dict[str, Any], keys: list[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        below = content.get(key)
        if not isinstance(below, dict):
            # `parts: {encoder: frozen}` and `parts.encoder.lr=1e-5`: the long form of what stood there.
            below = {} if below is None else {"lr": below}
            content[key] = below
        content = below
    content[last] = value


def _nearest(place: list[str]) -> str:
    here = _keys_beside(place)
    near = nearest_key(place[-1], here, _ELSEWHERE)
    return f"; did you mean {near!r}?" if near else f"; known here: {', '.join(here)}"


def _keys_beside(place: list[str]) -> list[str]:
    """Keys that may stand where an unknown one does."""
    below: list[tuple[type[_Entry], bool]] = [
        (PartEntry, len(place) > 2 and place[0] == "parts"),
        (HeadsEntry, len(place) > 2 and place[0] == "grounding"),
        (DataEntry, "data" in place[:-1]),
        (_ENTRIES.get(place[0], Recipe), len(place) > 1),
        (Recipe, True),
    ]
    return list(next(entry for entry, is_it in below if is_it).model_fields)


_ENTRIES: dict[str, type[_Entry]] = {
    "parts": PartsEntry,
    "data": DataEntry,
    "lora": LoraEntry,
    "grounding": GroundingEntry,
    "eval": EvalEntry,
    "tests": TestEntry,
}
_ELSEWHERE = {
    **{key: f"{owner}.{key}" for owner, entry in _ENTRIES.items() if owner != "tests" for key in entry.model_fields},
    "lr": "parts.encoder.lr",
    "batchnorm": "parts.encoder.batchnorm",
    **{key: key for key in Recipe.model_fields},
}
