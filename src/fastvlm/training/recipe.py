"""Recipes: YAML files that define a training run. Every key is checked before anything is opened.

A rate is a number or the word ``frozen``; lengths are in tokens, sides in pixels, times in minutes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml

from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.training.recipe_errors import complaint, nearest_key

try:
    from pydantic import (
        AliasChoices,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        ValidationError,
        model_validator,
    )
except ImportError as error:
    raise MissingExtraError("pydantic", "train", "fastvlm train") from error

Part = Literal["encoder", "projector", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "projector", "decoder")
_Share = Annotated[float, Field(ge=0, lt=1)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]
SHIPPED = Path(__file__).with_name("recipes")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _frozen_or_rate(value: Any) -> Any:
    """``frozen`` for ``{lr: frozen}``, and a bare number for ``{lr: number}``."""
    return value if isinstance(value, dict) else {"lr": value}


class PartEntry(_Entry):
    """Training of one part of the model.

    Args:
        lr: the peak learning rate; "frozen" if the weights do not change.
        batchnorm: of the encoder: "frozen" keeps the running statistics, as a fused network requires; "train" updates
            them, as a network from scratch requires. A frozen encoder keeps them in any case.
    """

    lr: PositiveFloat | Literal["frozen"]
    batchnorm: Literal["frozen", "train"] = "frozen"

    @property
    def is_frozen(self) -> bool:
        """True if no weight of the part changes."""
        return self.lr == "frozen"

    @property
    def rate(self) -> float:
        """The peak learning rate; 0 for a frozen part."""
        return 0.0 if isinstance(self.lr, str) else self.lr


def _path_or_entry(value: Any) -> Any:
    return {"path": str(value)} if isinstance(value, (str, Path)) else value


class DataEntry(_Entry):
    """One source of samples.

    Args:
        path: a file or folder as :func:`fastvlm.training.data.samples.open_samples` takes it.
        images_in: the folder where relative image paths begin.
        repeat: times that each sample is used in an epoch; 0.5 uses a random half, chosen by the seed.
        ignore: unknown columns, keys of turns and kinds of shard members that are left out.
    """

    path: str
    images_in: str | None = Field(default=None, validation_alias=AliasChoices("images_in", "pictures_in"))  # 0.1's name
    repeat: PositiveFloat = 1.0
    ignore: tuple[str, ...] = ()


DataOption = Annotated[DataEntry, BeforeValidator(_path_or_entry)]


class LoraEntry(_Entry):
    """LoRA adapters; the defaults are those of Apple's code (ml-fastvlm at 592b4ad, train.py).

    Args:
        r, alpha, dropout: rank, scale (``alpha / r``), dropout before the first matrix.
        parts: that get adapters; the other parts are trained as `parts` of the recipe says.
        merge: also write the whole model at the end, with the adapter merged.
    """

    r: PositiveInt = 64
    alpha: PositiveFloat = 16.0
    dropout: _Share = 0.05
    parts: tuple[Part, ...] = ("decoder",)
    merge: bool = False


class HeadsEntry(_Entry):
    """Attention heads of one decoder layer, both counted from 0."""

    layer: NonNegativeInt
    heads: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class GroundingEntry(_Entry):
    """Losses in addition to the text loss, for records with `objects` and `looks` (docs/training_data.md).

    Args:
        objects: weight of the object classification loss on 16 px cells; 0: off. Needs names.json next to the data.
        looks: weight of the attention loss; 0: off.
        reminding: heads trained to attend to the question's words that identify the object.
        looking: heads of a later layer, trained to attend to the object's visual tokens.
    """

    objects: NonNegativeFloat = 0.5
    looks: NonNegativeFloat = 0.3
    reminding: HeadsEntry = HeadsEntry(layer=1, heads=(0, 1))
    looking: HeadsEntry = HeadsEntry(layer=3, heads=(0, 1))


class EvalEntry(_Entry):
    """Held-out samples on which the loss is measured.

    Args:
        data: separate sources; or
        fraction: of the training samples, removed from them by the seed.
        every: steps between two measurements; 0: only at the end.
    """

    data: tuple[DataOption, ...] = ()
    fraction: _Fraction | None = None
    every: NonNegativeInt = 0

    @model_validator(mode="after")
    def _has_one(self) -> EvalEntry:
        if bool(self.data) == (self.fraction is not None):
            raise ValueError("expected either data or fraction")
        return self


class TestEntry(_Entry):
    """Questions for the final model, specified as for `fastvlm eval`; the model card gets the scores.

    Args:
        suite: "mini", the questions that come with the package; or
        task: a benchmark's name, or "plain".
        data, images: the task's file or folder, and the folder of its images.
        metric: of "plain".
        limit: the largest number of questions of each test.
    """

    __test__ = False  # pytest takes classes called Test... for tests

    suite: str | None = None
    task: str | None = None
    data: str | None = None
    images: str | None = None
    metric: str | None = None
    limit: PositiveInt | None = None


PartOption = Annotated[PartEntry, BeforeValidator(_frozen_or_rate)]


class PartsEntry(_Entry):
    """The three parts of the model; the paper trains all of them in every stage except the first."""

    encoder: PartOption = PartEntry(lr="frozen")
    projector: PartOption = PartEntry(lr=2e-5)
    decoder: PartOption = PartEntry(lr=2e-5)

    def of(self, part: Part) -> PartEntry:
        """The entry of one part."""
        entry: PartEntry = getattr(self, part)
        return entry


class Recipe(_Entry):
    """A training run. `data` may come from the command line; everything else has a default.

    Args:
        name: of the run, and of its default folder.
        model: the checkpoint to begin from: "mini", a folder, a Hub name.
        from_scratch: use only the model's sizes and tokenizer: random weights, a multi-branch encoder.
        data, eval: samples for training and for evaluation.
        grounding: auxiliary losses for records with object positions; None: text loss only.
        image_size: side in pixels, or [height, width]; None for the checkpoint's.
        parts, lora: learning rates of the parts, and adapters.
        base_bits: of the frozen weights under adapters: 16 as they are, 8 or 4 (needs `lora`).
        batch_size: samples a step, over all processes and accumulated micro-batches.
        micro_batch_size: samples that a process computes at once.
        epochs, max_steps: length of the run; `max_steps` wins.
        warmup_ratio, schedule: share of the steps over which the rates rise; then they fall to 0, or stay ("constant").
        weight_decay: not for norms, biases and layer scales.
        betas: of AdamW.
        max_grad_norm: larger gradients are scaled down; 0: never.
        max_tokens: longest sample, with its visual tokens.
        dtype: "auto" is bfloat16 arithmetic on a GPU that has it, else float32; trained weights are float32.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        ema: decay of a moving average of the weights, which the final folder then has; None: no average.
        seed: of all random choices.
        save_every_steps, save_every_minutes: between checkpoints; whichever comes first.
        log_every: steps that one line of the log averages.
        workers: processes that read images.
        tests: questions for the final model; its card has the scores.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    model: str = "mini"
    from_scratch: bool = False
    data: tuple[DataOption, ...] = ()
    image_size: Annotated[int, Field(ge=64)] | tuple[int, int] | None = None
    parts: PartsEntry = PartsEntry()
    lora: LoraEntry | None = None
    grounding: GroundingEntry | None = None
    base_bits: Literal[16, 8, 4] = 16
    batch_size: PositiveInt = 128
    micro_batch_size: PositiveInt = 8
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    warmup_ratio: _Share = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    max_grad_norm: NonNegativeFloat = 1.0
    max_tokens: Annotated[int, Field(ge=8)] = 8192
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    ema: _Fraction | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every_steps: PositiveInt = 500
    save_every_minutes: PositiveFloat = 30.0
    log_every: PositiveInt = 10
    eval: EvalEntry | None = None
    workers: NonNegativeInt = 2
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
            self._check_lora(self.lora)
        if self.grounding is not None:
            self._check_grounding(self.grounding)
        return self

    def _check_grounding(self, grounding: GroundingEntry) -> None:
        if self.gradient_checkpointing:
            raise ValueError("grounding needs activations that gradient_checkpointing discards; leave one of them out")
        if grounding.objects and not self.learns("encoder"):
            raise ValueError("grounding.objects teaches the encoder, which is frozen; set grounding.objects=0")
        if grounding.looks and not self.learns("decoder"):
            raise ValueError("grounding.looks teaches the decoder, which is frozen; set grounding.looks=0")

    def _check_lora(self, lora: LoraEntry) -> None:
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
        """YAML that :func:`read_recipe` reads as this recipe."""
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
        UsageError: no such file, invalid YAML, an unknown key, an invalid value, contradicting keys.
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
            # `parts: {encoder: frozen}` and `parts.encoder.batchnorm=train`: convert the short form to {lr: frozen}.
            below = {} if below is None else {"lr": below}
            content[key] = below
        content = below
    content[last] = value


def _nearest(place: list[str]) -> str:
    here = _keys_beside(place)
    elsewhere = dict(reversed([*_all_keys(Recipe)])) | {key: key for key in Recipe.model_fields}
    near = nearest_key(place[-1], here, elsewhere)
    return f"; did you mean {near!r}?" if near else f"; known here: {', '.join(here)}"


def _keys_beside(place: list[str]) -> list[str]:
    """Keys that are valid where the unknown key at `place` is."""
    entry: type[_Entry] = Recipe
    for key in place[:-1]:
        if key in entry.model_fields:
            entry = _entry_in(entry.model_fields[key].annotation) or entry
    return list(entry.model_fields)


def _all_keys(entry: type[_Entry], above: str = "") -> Iterator[tuple[str, str]]:
    """(key, its whole dotted key) of everything below `entry`, but the tests, which name other things by such keys."""
    for key, field in entry.model_fields.items():
        yield key, above + key
        below = _entry_in(field.annotation)
        if below is not None and below is not TestEntry:
            yield from _all_keys(below, f"{above}{key}.")


def _entry_in(annotation: Any) -> type[_Entry] | None:
    """The entry in a field's type: DataEntry of ``tuple[DataEntry, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, _Entry):
        return annotation
    return next(filter(None, map(_entry_in, get_args(annotation))), None)
