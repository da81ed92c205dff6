"""One training run, from the recipe to the final folder; `TrainingRun.train` lists its steps."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from fastvlm import __version__
from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.hf.loading import load
from fastvlm.hf.lora import merge_adapter
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import SupervisedDataset
from fastvlm.training.data.digest import compare_data
from fastvlm.training.data.length_groups import LengthGroupedBatches
from fastvlm.training.data.mixing import open_mixture, split_off
from fastvlm.training.grounding.objective import GroundingObjective
from fastvlm.training.grounding.objects import ObjectNames
from fastvlm.training.grounding.rows import GroundingColumns
from fastvlm.training.recipe import PARTS, Recipe
from fastvlm.training.run.callbacks import (
    AverageCallback,
    EpochCallback,
    LogCallback,
    Progress,
    ResumeCallback,
    StopCallback,
)
from fastvlm.training.run.curves import draw_curves
from fastvlm.training.run.ema import WeightAverage
from fastvlm.training.run.error_messages import readable_errors
from fastvlm.training.run.final_folder import write_adapter, write_card, write_model
from fastvlm.training.run.interruption import Interruption
from fastvlm.training.run.model_card import RunFacts, TestScore, model_card
from fastvlm.training.run.model_setup import ModelSetup, arithmetic_dtype, open_processor, set_up_model
from fastvlm.training.run.run_folder import RunFolder
from fastvlm.training.run.trainer import FastVlmTrainer

Measure = Callable[[Path], Sequence[TestScore]]  # a final folder, a model's or an adapter's -> the tests' scores

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Outcome:
    """Result of :meth:`TrainingRun.train`.

    Attributes:
        folder: the run's.
        model, adapter: final folders; None where there is none, or the run was stopped before its end.
        checkpoint: the newest one.
        step, num_steps: made, and to be made in all.
        signal: what stopped the run, if anything did.
        loss, eval_loss: the last ones of the log.
    """

    folder: Path
    model: Path | None
    adapter: Path | None
    checkpoint: Path | None
    step: int
    num_steps: int
    signal: int | None
    loss: float | None
    eval_loss: float | None


def open_dataset(recipe: Recipe, entries: Any, processor: FastVlmProcessor) -> SupervisedDataset:
    """Open a recipe's sources as a dataset."""
    samples, choice = open_mixture(entries, recipe.seed), recipe.grounding
    grounded = None
    if choice is not None:
        grounded = GroundingColumns(processor, object_names(recipe), has_looks=choice.looks > 0)
    return SupervisedDataset(samples, processor, max_tokens=recipe.max_tokens, grounded=grounded)


def _warn_of_unused(data: SupervisedDataset) -> None:
    """Warn once, in the first process, of shard members that are not used."""
    unused = getattr(data.samples, "unused", [])
    if unused and os.environ.get("RANK", "0") == "0":
        shown = "; ".join(f"{member.origin}: {member.reason}" for member in unused[:3])
        warnings.warn(f"{len(unused)} members of shards are not used ({shown}). --check lists them.", stacklevel=1)


def object_names(recipe: Recipe) -> ObjectNames | None:
    """Names of all objects in a recipe's data; None if it has no object loss."""
    if recipe.grounding is None or not recipe.grounding.objects:
        return None
    return ObjectNames.beside(Path(entry.path) for entry in recipe.data)


def _add_objective(model: FastVlmForConditionalGeneration, recipe: Recipe) -> GroundingObjective | None:
    """Add the auxiliary losses as a module of the model, so that checkpoints contain it; None if there are none."""
    if recipe.grounding is None:
        return None
    vision, text = model.config.vision_config, model.config.text_config
    for key, heads in (("reminding", recipe.grounding.reminding), ("looking", recipe.grounding.looking)):
        if heads.layer >= text.num_hidden_layers or max(heads.heads) >= text.num_attention_heads:
            raise UsageError(
                f"grounding.{key} names layer {heads.layer} and heads {list(heads.heads)}; the decoder has "
                f"{text.num_hidden_layers} layers of {text.num_attention_heads} heads, counted from 0."
            )
    widths = [stage.channels for stage in vision.stages]
    objective = GroundingObjective(recipe.grounding, object_names(recipe), widths, vision.hidden_size)
    model.add_module("grounding_objective", objective)
    return objective


def num_processes() -> int:
    """Number of training processes, from the environment that torchrun and accelerate set."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class TrainingRun:
    """One run.

    Args:
        recipe: with `data`.
        folder: of the run.
        on_progress: called after each step, in the first process.
        commit: of the source that trains, for the model card.
        measure: asks the recipe's tests; evaluation lies above this room, so that it is handed in.

    Raises:
        UsageError: no data; a batch that cannot be divided among the processes; tests without `measure`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        commit: str | None = None,
        measure: Measure | None = None,
    ) -> None:
        if not recipe.data:
            raise UsageError("There is no training data: give --data, or data in the recipe.")
        if recipe.tests and measure is None:
            raise UsageError("The recipe has tests, which `fastvlm train` asks; in Python pass measure=, or drop them.")
        self.recipe, self.files, self.on_progress = recipe, RunFolder(folder), on_progress
        self.measure = measure
        self.accumulated = _accumulated(recipe)
        self.tool = f"fastvlm {__version__}" + (f" at {commit}" if commit else "")

    def train(self, *, is_resumed: bool = False, allows_changed_data: bool = False) -> Outcome:
        """Run the remaining steps and write the final folder, or stop at a signal with a checkpoint.

        Args:
            is_resumed: go on from the newest checkpoint in the folder.
            allows_changed_data: also where the samples are not those that the run has seen.

        Raises:
            UsageError: the folder holds another run, or `is_resumed` is False and it holds this one; other samples; or
                another process trains in it.
            TrainingError: the loss is not finite, out of memory, disk full. The last good checkpoint is kept.
            DataError: a sample that cannot be used, by origin.
        """
        interruption = Interruption()
        with ExitStack() as locks, interruption.listening(), readable_errors(self.recipe, self.files):
            processor = open_processor(self.recipe)
            data = open_dataset(self.recipe, self.recipe.data, processor)
            _warn_of_unused(data)
            train_rows, eval_rows = self._split(data, processor)
            arguments = self._arguments(has_eval=eval_rows is not None)
            last = self._claim(arguments, locks, is_resumed=is_resumed, allows_changed_data=allows_changed_data)
            self._compare_data(
                arguments, train_rows, eval_rows, is_resumed=last is not None, allows_change=allows_changed_data
            )
            setup = set_up_model(self.recipe)
            if setup.base_digest is not None and arguments.process_index == 0:
                self.files.claim_base(setup.base_digest, is_resumed=last is not None)
            trainer = self._trainer(setup, processor, arguments, train_rows, eval_rows)
            self._add_callbacks(trainer, interruption, last)
            self._run_steps(trainer, interruption, last)
            if interruption.signal is None:
                self._finish(trainer, setup, processor, len(train_rows))
            return self._outcome(trainer, interruption.signal)

    # ------------------------------------------------------------------------------------------------ before

    def _split(self, data: SupervisedDataset, processor: FastVlmProcessor) -> tuple[Any, Any]:
        """(training rows, evaluation rows or None)."""
        choice = self.recipe.eval
        if choice is None:
            return data, None
        if choice.fraction is not None:
            return split_off(data, choice.fraction, self.recipe.seed)
        return data, open_dataset(self.recipe, choice.data, processor)

    def _compare_data(
        self, arguments: TrainingArguments, train_rows: Any, eval_rows: Any, *, is_resumed: bool, allows_change: bool
    ) -> None:
        """Compare the samples with those at the run's start and record them, in the first process."""
        digests = {"data": train_rows.digest(self.recipe.workers)}
        if self.recipe.eval is not None and self.recipe.eval.data:
            digests["eval.data"] = eval_rows.digest(self.recipe.workers)
        if arguments.process_index == 0:
            if is_resumed:
                compare_data(self.files.read_data(), digests, allows_change=allows_change)
            self.files.write_data({name: asdict(digest) for name, digest in digests.items()})

    def _claim(
        self, arguments: TrainingArguments, locks: ExitStack, *, is_resumed: bool, allows_changed_data: bool
    ) -> Path | None:
        """Lock and prepare the folder in the first process; return the checkpoint to resume from."""
        with arguments.main_process_first(desc="run folder"):
            if arguments.process_index == 0:
                locks.enter_context(self.files.locked())
                return self.files.claim(self.recipe, is_resumed=is_resumed, allows_changed_data=allows_changed_data)
            return self.files.last_good()

    def _arguments(self, *, has_eval: bool) -> TrainingArguments:
        recipe, has_gpu = self.recipe, torch.cuda.is_available() or torch.backends.mps.is_available()
        every = recipe.eval.every if recipe.eval else 0
        return TrainingArguments(
            output_dir=str(self.files.folder),
            per_device_train_batch_size=recipe.micro_batch_size,
            per_device_eval_batch_size=recipe.micro_batch_size,
            gradient_accumulation_steps=self.accumulated,
            num_train_epochs=recipe.epochs,
            max_steps=recipe.max_steps or -1,
            learning_rate=max(recipe.parts.of(part).rate for part in PARTS),
            lr_scheduler_type=_SCHEDULES[recipe.schedule],
            warmup_steps=recipe.warmup_ratio,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            bf16=arithmetic_dtype(recipe) == torch.bfloat16,
            use_cpu=not has_gpu,
            seed=recipe.seed,
            logging_steps=recipe.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=recipe.save_every_steps,
            eval_strategy="steps" if has_eval and every else "no",
            eval_steps=every or None,
            prediction_loss_only=True,
            dataloader_num_workers=recipe.workers,
            dataloader_persistent_workers=recipe.workers > 0,
            dataloader_prefetch_factor=max(2, 8 // recipe.workers) if recipe.workers else None,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,  # there are none: see `with_black_image`
            label_names=["labels"],
            report_to=_reporters(),
            disable_tqdm=True,
        )

    def _trainer(
        self,
        setup: ModelSetup,
        processor: FastVlmProcessor,
        arguments: TrainingArguments,
        train_rows: Any,
        eval_rows: Any,
    ) -> FastVlmTrainer:
        objective = _add_objective(setup.plain, self.recipe)
        lengths = train_rows.lengths(self.recipe.workers)
        order = LengthGroupedBatches(lengths, self.recipe.micro_batch_size, seed=self.recipe.seed)
        trainer = FastVlmTrainer(
            setup.model,
            arguments,
            recipe=self.recipe,
            files=self.files,
            order=order,
            objective=objective,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            data_collator=Collator(processor.tokenizer.pad_token_id or 0),
        )
        if not trainer.is_deepspeed_enabled:  # which sends weights to the other processes as they lie
            setup.plain.model.vision_tower.to(memory_format=torch.channels_last)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            for key in ("ema", "grounding"):
                if getattr(self.recipe, key) is not None:
                    raise UsageError(f"{key} needs whole weights in each process; with FSDP or DeepSpeed leave it out.")
        if self.recipe.ema is not None:
            trainer.average = WeightAverage(setup.plain, self.recipe.ema)
        return trainer

    def _add_callbacks(self, trainer: FastVlmTrainer, interruption: Interruption, last: Path | None) -> None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LogCallback(trainer, self.on_progress))
        trainer.add_callback(EpochCallback(trainer.order))
        trainer.add_callback(AverageCallback(trainer))
        trainer.add_callback(StopCallback(trainer, interruption, self.recipe.save_every_minutes))
        if last is not None:
            trainer.add_callback(ResumeCallback(trainer, last))

    # ------------------------------------------------------------------------------------------------ steps, after

    def _run_steps(self, trainer: FastVlmTrainer, interruption: Interruption, last: Path | None) -> None:
        with interruption.waiting_for_step():
            if last is None or not trainer.restored_at_the_end(last):
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
            if interruption.signal is None and trainer.eval_dataset is not None:
                trainer.evaluate()

    def _finish(
        self, trainer: FastVlmTrainer, setup: ModelSetup, processor: FastVlmProcessor, num_samples: int
    ) -> None:
        """Write the final folder, its card and the curves; all processes gather the weights, the first one writes."""
        average = trainer.average
        weights: dict[str, torch.Tensor] = {}
        if self.recipe.lora is None:
            weights = trainer.accelerator.get_state_dict(trainer.model)
            if average is not None:
                weights = {**weights, **average.averages}
        if not trainer.is_world_process_zero():
            return
        log = self.files.read_log()
        try:
            draw_curves(log, self.files.curves, f"{self.recipe.name}: {trainer.state.global_step:,} steps")
        except MissingExtraError as missing:
            warnings.warn(f"There is no {self.files.curves.name}. {missing}", stacklevel=1)
        facts = self._facts(trainer, setup, num_samples, log)
        if self.recipe.lora is not None:
            card = model_card(self.recipe, facts, is_adapter=True)
            write_adapter(self.files.adapter, trainer.model, card, setup.base_digest)
            weights = self._merged() if self.recipe.lora.merge else {}
        if weights:
            write_model(
                self.files.model,
                weights,
                setup.folder,
                processor,
                card=model_card(self.recipe, facts),
                is_multi_branch=facts.is_multi_branch,
            )
        self._ask_tests(facts)

    def _ask_tests(self, facts: RunFacts) -> None:
        """Run the recipe's tests on the final folders and add the scores to their cards."""
        if not self.recipe.tests or self.measure is None:
            return
        for folder in (self.files.adapter, self.files.model):
            if folder.is_dir():
                scored = replace(facts, scores=self.measure(folder))
                write_card(folder, model_card(self.recipe, scored, is_adapter=folder == self.files.adapter))

    def _merged(self) -> dict[str, torch.Tensor]:
        """Weights of the base, as stored and not rounded, with the adapter merged."""
        model, _ = load(self.recipe.model, device="cpu", dtype=torch.float32)
        return merge_adapter(model, self.files.adapter).state_dict()  # type: ignore[no-any-return]

    def _facts(self, trainer: FastVlmTrainer, setup: ModelSetup, num_samples: int, log: Any) -> RunFacts:
        parameters = list(setup.model.parameters())
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
        return RunFacts(
            num_samples=num_samples,
            num_parameters=sum(p.numel() for p in parameters),
            num_trained=sum(p.numel() for p in parameters if p.requires_grad),
            num_steps=trainer.state.global_step,
            log=log,
            tool=self.tool,
            machine=f"{trainer.args.world_size} x {device}, torch {torch.__version__}",
            is_multi_branch=not setup.plain.model.vision_tower.timm_model.is_fused,
        )

    def _outcome(self, trainer: FastVlmTrainer, signal: int | None) -> Outcome:
        log = self.files.read_log()
        is_done = signal is None
        return Outcome(
            folder=self.files.folder,
            model=self.files.model if is_done and self.files.model.is_dir() else None,
            adapter=self.files.adapter if is_done and self.files.adapter.is_dir() else None,
            checkpoint=self.files.last_good(),
            step=trainer.state.global_step,
            num_steps=trainer.state.max_steps,
            signal=signal,
            loss=next((line["loss"] for line in reversed(log) if "loss" in line), None),
            eval_loss=next((line["eval_loss"] for line in reversed(log) if "eval_loss" in line), None),
        )


def _accumulated(recipe: Recipe) -> int:
    """Gradient accumulation steps of each process."""
    together = recipe.micro_batch_size * num_processes()
    if recipe.batch_size % together:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, which {num_processes()} processes of micro_batch_size "
            f"{recipe.micro_batch_size} cannot share evenly; take a multiple of {together}."
        )
    return recipe.batch_size // together


def _reporters() -> list[str]:
    """Installed reporters: TensorBoard, and Weights & Biases if it is configured."""
    found = ["tensorboard"] if find_spec("tensorboard") else []
    has_wandb = find_spec("wandb") is not None and ("WANDB_API_KEY" in os.environ or "WANDB_MODE" in os.environ)
    return [*found, "wandb"] if has_wandb else found
