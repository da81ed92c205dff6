"""One training run, from the recipe to the final folder; `TrainingRun.train` lists its steps."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from fastvlm import __version__
from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.hf.loading import load
from fastvlm.hf.lora import merge_adapter
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.storage.locks import exclusive_folder
from fastvlm.storage.whole_files import write_file
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.length_groups import LengthGroupedBatches
from fastvlm.training.data.recipe_data import Rows, object_names, open_rows
from fastvlm.training.grounding.objective import add_objective
from fastvlm.training.recipe import Recipe
from fastvlm.training.run.arguments import num_accumulated, training_arguments
from fastvlm.training.run.callbacks import LogCallback, Progress, StateCallback, StopCallback
from fastvlm.training.run.curves import draw_curves
from fastvlm.training.run.ema import WeightAverage
from fastvlm.training.run.error_messages import readable_errors
from fastvlm.training.run.final_folder import write_adapter, write_model
from fastvlm.training.run.interruption import Interruption
from fastvlm.training.run.model_card import RunFacts, TestScore, model_card
from fastvlm.training.run.model_setup import ModelSetup, open_processor, set_up_model
from fastvlm.training.run.run_folder import RunFolder
from fastvlm.training.run.trainer import FastVlmTrainer

Measure = Callable[[Path], Sequence[TestScore]]  # a final folder, a model's or an adapter's -> the tests' scores


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


class TrainingRun:
    """One run.

    Args:
        recipe: with `data`.
        folder: of the run.
        on_progress: called after each step, in the first process.
        commit: of the source that trains, for the model card.
        measure: runs the recipe's tests; a parameter, because training may not import evaluation.

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
        num_accumulated(recipe)  # raises before anything is opened
        self.tool = f"fastvlm {__version__}" + (f" at {commit}" if commit else "")

    def train(self, *, is_resumed: bool = False, allows_changed_data: bool = False) -> Outcome:
        """Run the remaining steps and write the final folder, or stop at a signal with a checkpoint.

        Args:
            is_resumed: continue from the newest checkpoint in the folder.
            allows_changed_data: also if the samples have changed since the run began.

        Raises:
            UsageError: the folder has another run, or this one and `is_resumed` is False; the samples have changed; or
                another process trains in it.
            TrainingError: the loss is not finite, out of memory, disk full. The last good checkpoint is kept.
            DataError: a sample that cannot be used, by origin.
        """
        interruption = Interruption()
        with ExitStack() as locks, interruption.listening(), readable_errors(self.recipe, self.files):
            processor = open_processor(self.recipe)
            train_rows, eval_rows = open_rows(self.recipe, processor)
            arguments = training_arguments(self.recipe, self.files.folder, has_eval=eval_rows is not None)
            last = self._claim(arguments, locks, is_resumed=is_resumed, allows_changed_data=allows_changed_data)
            digests = self._digests(train_rows, eval_rows)
            if arguments.process_index == 0:
                self.files.claim_data(digests, is_resumed=last is not None, allows_change=allows_changed_data)
            setup = set_up_model(self.recipe)
            if arguments.process_index == 0 and setup.base_digest is not None:
                self.files.claim_base(setup.base_digest, is_resumed=last is not None)
            trainer = self._trainer(setup, processor, arguments, train_rows, eval_rows)
            self._add_callbacks(trainer, interruption, last)
            self._run_steps(trainer, interruption, last)
            if interruption.signal is None:
                self._finish(trainer, setup, processor, len(train_rows))
            return self._outcome(trainer, interruption.signal)

    def _digests(self, train_rows: Rows, eval_rows: Rows | None) -> dict[str, dict[str, Any]]:
        digests = {"data": train_rows.digest(self.recipe.workers)}
        if eval_rows is not None and self.recipe.eval is not None and self.recipe.eval.data:
            digests["eval.data"] = eval_rows.digest(self.recipe.workers)
        return digests

    def _claim(
        self, arguments: TrainingArguments, locks: ExitStack, *, is_resumed: bool, allows_changed_data: bool
    ) -> Path | None:
        """Lock and prepare the folder in the first process; return the checkpoint to resume from."""
        with arguments.main_process_first(desc="run folder"):
            if arguments.process_index == 0:
                locks.enter_context(exclusive_folder(self.files.folder))
                return self.files.claim(self.recipe, is_resumed=is_resumed, allows_changed_data=allows_changed_data)
            return self.files.last_good()

    def _trainer(
        self,
        setup: ModelSetup,
        processor: FastVlmProcessor,
        arguments: TrainingArguments,
        train_rows: Rows,
        eval_rows: Rows | None,
    ) -> FastVlmTrainer:
        choice = self.recipe.grounding
        objective = None if choice is None else add_objective(setup.plain, choice, object_names(self.recipe))
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
        trainer.add_callback(StateCallback(trainer, last))
        trainer.add_callback(StopCallback(trainer, interruption, self.recipe.save_every_minutes))

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
                write_file(
                    folder / "README.md", model_card(self.recipe, scored, is_adapter=folder == self.files.adapter)
                )

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
