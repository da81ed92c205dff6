"""Phase B: encoder, projector and decoder learn together from conversations about pictures.

    python -m recipes.mini.train --run FOLDER --tokenizer FOLDER --minutes 60

Begins from FOLDER/encoder.pt (phase A); stopped at any time it goes on from FOLDER/joint.pt. The encoder stays in
its multi-branch form (it is fused for shipping), and the dense objective of phase A stays beside the language loss.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recipes.mini.benchmark import QUICK_TESTS, WATCHED, Item, make_items
from recipes.mini.conversation import IGNORED, VISUAL_TOKENS, Conversations, Encoded
from recipes.mini.dense import DenseTarget, nothing_known
from recipes.mini.dense_head import DenseBatch, DenseHead, dense_loss
from recipes.mini.looks import Gaze, look_loss
from recipes.mini.loop import (
    Log,
    Progress,
    Schedule,
    batches,
    decayed_groups,
    load_state,
    save_state,
    set_learning_rate,
    to_pixels,
)
from recipes.mini.mix import draw, joint_mix
from recipes.mini.muon import Muon
from recipes.mini.pretrain import collate_dense, encoder_groups, pixels_of, shown, to_training
from recipes.mini.word_alignment import WordAlignment
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from fastvlm.demo_data import easy_questions
from fastvlm.demo_data.looks import Look, looks_of, reminder_of
from fastvlm.demo_data.scene_questions import turns_of
from fastvlm.demo_data.wording import Turn
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.model.fastvithd import FastViTHD

EASY_SHARE = 0.2
TALK_SHARE = 0.15  # samples in which a question follows what was said before; the others ask side by side
MOST_TOKENS = 230
LENGTH_POOL = 6  # batches that are sorted by length together
DENSE_WEIGHT, ALIGNMENT_WEIGHT, LOOK_WEIGHT = 0.5, 0.3, 0.3


@dataclass(frozen=True)
class Sample:
    """One picture (H, W, 3) uint8, its conversation, and its dense target (all IGNORED where nothing is known)."""

    image: np.ndarray
    encoded: Encoded
    dense: DenseTarget


@dataclass(frozen=True)
class Batch:
    """B samples: images (B, H, W, 3) uint8; ids, labels, positions (B, T) int64, padded on the right.

    `mask` (B, 1, T, T) float32: 0 where a token (row) sees another, the lowest number where not.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor
    dense: DenseBatch
    gazes: list[list[Gaze]]


class Talks(Dataset[Sample]):
    """Picture number `index` of the joint mix with a conversation about it."""

    def __init__(self, tokenizer: Any) -> None:
        self.conversations = Conversations(tokenizer)

    def __getitem__(self, index: int) -> Sample:
        scene, rng = draw("joint", index, joint_mix(index))
        if rng.random() < EASY_SHARE:
            table = easy_questions.turns_by_picture("train")
            number = rng.randrange(len(table))
            turns = rng.sample(table[number], min(6, len(table[number])))
            image = easy_questions.picture("train", number)
            looks = [reminder_of(turn) for turn in turns]
            return Sample(np.asarray(image), self._encoded(rng, turns, looks), nothing_known())
        turns = turns_of(rng, scene)
        pixels, target = shown(scene)
        return Sample(pixels, self._encoded(rng, turns, [looks_of(scene, turn) for turn in turns]), target)

    def _encoded(self, rng: Random, turns: list[Turn], looks: list[list[Look]]) -> Encoded:
        if rng.random() < TALK_SHARE:
            return self.conversations.encode(turns, MOST_TOKENS)
        return self.conversations.side_by_side(turns, MOST_TOKENS, looks)


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(B, T) int64, filled with `value` on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def seen(turns: Tensor) -> Tensor:
    """The mask (B, 1, T, T) of turns (B, T), which are -1 where a row is padded; see `Batch` and `Encoded`."""
    own, other = turns[:, :, None], turns[:, None, :]
    is_seen = ((other == own) | (other == 0)).tril()
    return torch.where(is_seen, 0.0, torch.finfo(torch.float32).min)[:, None]


def collate_by_length(samples: list[Sample]) -> list[Batch]:
    """LENGTH_POOL batches of samples of like length: a quarter fewer padded tokens than as they come."""
    samples = sorted(samples, key=lambda sample: len(sample.encoded.ids))
    size = len(samples) // LENGTH_POOL
    return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]


def collate(samples: list[Sample]) -> Batch:
    """One batch of several samples."""
    ids = [sample.encoded.ids for sample in samples]
    return Batch(
        torch.from_numpy(np.stack([sample.image for sample in samples])),
        padded(ids, 0),
        padded([sample.encoded.labels for sample in samples], IGNORED),
        padded([sample.encoded.positions for sample in samples], 0),
        seen(padded([sample.encoded.turns for sample in samples], -1)),
        collate_dense([sample.dense for sample in samples]),
        [sample.encoded.gazes for sample in samples],
    )


def new_model(tokenizer: Any, *, is_fused: bool = False) -> FastVlmForConditionalGeneration:
    """The mini in training form: a multi-branch encoder (or one that was shipped: fused), everything at random."""
    config = FastVlmConfig.preset("mini")
    config.image_seq_length = VISUAL_TOKENS
    if config.text_config.vocab_size != len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {config.text_config.vocab_size} rows")
    config.vision_config.model_args = {**(config.vision_config.model_args or {}), "inference_mode": is_fused}
    model = FastVlmForConditionalGeneration(config)
    model.model.language_model.set_attn_implementation("eager")  # SDPA's backward on a CPU: steps of 1.6 s, not 1.1
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def has_fused_encoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of a model whose encoder was fused."""
    return any(".reparam_conv." in name and "stem" in name for name in weights)


def encoder_of(model: FastVlmForConditionalGeneration) -> FastViTHD:
    """The encoder inside of the vision tower."""
    return next(module for module in model.modules() if isinstance(module, FastViTHD))


def losses_of(
    model: FastVlmForConditionalGeneration, head: DenseHead, alignment: WordAlignment, batch: Batch
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(language, dense, alignment, look) losses; logits are computed only where something is learnt."""
    image: Any = model.get_image_features(to_pixels(batch.images), output_hidden_states=True)
    targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    is_learnt = targets != IGNORED
    # Twice as fast in the decoder where the CPU has the arithmetic; the encoder's training is not.
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        output = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            mm_encoder_outputs={"image": image},
            logits_to_keep=is_learnt,
            use_cache=False,
            output_attentions=True,
        )
    language = F.cross_entropy(output.logits.float(), targets[is_learnt])
    look = look_loss(output.attentions, batch.gazes)
    is_drawn = batch.dense.classes[:, 0, 0] != IGNORED
    known = DenseBatch(batch.dense.classes[is_drawn], batch.dense.colours[is_drawn], batch.dense.emoji[is_drawn])
    words = alignment.loss(model.lm_head, image.pooler_output[is_drawn], known)
    stages = [stage[is_drawn] for stage in image.hidden_states]
    return language, dense_loss(head(image.last_hidden_state[is_drawn], stages), known), words, look


@torch.no_grad()
def exact_matches(model: FastVlmForConditionalGeneration, talks: Conversations, items: Sequence[Item]) -> float:
    """Share of items whose whole answer is the greedy one (checked by feeding the answer and comparing each step)."""
    model.eval()
    right = 0
    for start in range(0, len(items), 20):
        part = items[start : start + 20]
        samples = [
            Sample(pixels_of(item.image), talks.encode([(item.question, item.answers[0])], 999), nothing_known())
            for item in part
        ]
        batch = collate(samples)
        logits = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            pixel_values=to_pixels(batch.images),
        ).logits
        targets = batch.labels[:, 1:]
        right += int(((logits[:, :-1].argmax(-1) == targets) | (targets == IGNORED)).all(1).sum())
    to_training(model)
    return right / len(items)


def optimizers_of(
    model: FastVlmForConditionalGeneration, head: nn.Module, lr: float, encoder_lr: float
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of projector and decoder layers; AdamW for the rest, with `encoder_lr` in the encoder."""
    decoder = model.model.language_model
    groups = encoder_groups(encoder_of(model), head, encoder_lr, 0.02) + decayed_groups(decoder.embed_tokens, lr, 0.05)
    inner = nn.ModuleList([model.model.multi_modal_projector, decoder.layers])
    matrices, vectors = decayed_groups(inner, lr, 0.05)
    groups += [vectors, *decayed_groups(decoder.norm, lr, 0.05)]
    return {
        "adamw": torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), fused=True),
        "muon": Muon([matrices], lr),
    }


def shipped_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder that `ship` wrote, in float32."""
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.state_dict()  # type: ignore[no-any-return]


class Joint:
    """Model, dense head and optimiser with how far they are; written to and read from one file."""

    def __init__(self, run: Path, tokenizer: Any, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.path, self.progress = run / "joint.pt", Progress()
        phase_a, state = load_state(run / "encoder.pt"), load_state(self.path)
        shipped = shipped_weights(options.start) if state is None and options.start else None
        weights = state["model"] if state is not None else shipped
        self.model = new_model(tokenizer, is_fused=weights is not None and has_fused_encoder(weights))
        self.alignment = WordAlignment(tokenizer, self.model.config.text_config.vocab_size)
        vision = self.model.config.vision_config
        self.head = DenseHead([stage.channels for stage in vision.stages], vision.hidden_size)
        self.optimizers = optimizers_of(self.model, self.head, options.lr, options.encoder_lr)
        if weights is not None:
            self.model.load_state_dict(weights)
        if state is not None:
            self.head.load_state_dict(state["head"])
            for name, optimizer in self.optimizers.items():
                peaks = [group["peak_lr"] for group in optimizer.param_groups]
                optimizer.load_state_dict(state[name])
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["peak_lr"] = peak  # the rates are this run's, the moments the state's
            self.progress = Progress(**state["progress"])
        elif phase_a is not None and shipped is None:
            encoder_of(self.model).load_state_dict(phase_a["encoder"])
            self.head.load_state_dict(phase_a["head"])
        encoder_of(self.model).requires_grad_(not options.encoder_rests)

    def save(self) -> None:
        """Replace the file by what is now."""
        parts: dict[str, Any] = {"model": self.model, "head": self.head, **self.optimizers}
        save_state(self.path, self.progress, {name: part.state_dict() for name, part in parts.items()})

    def step(self, batch: Batch, factor: float) -> list[float]:
        """One update at `factor` of the peak rates; language, dense, alignment and look loss."""
        started = time.monotonic()
        losses = losses_of(self.model, self.head, self.alignment, batch)
        self.model.zero_grad(set_to_none=True)
        self.head.zero_grad(set_to_none=True)
        weights = (1.0, DENSE_WEIGHT, ALIGNMENT_WEIGHT, LOOK_WEIGHT)
        torch.autograd.backward(sum(weight * loss for weight, loss in zip(weights, losses, strict=True)))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, factor)
            optimizer.step()
        self.progress.step += 1
        self.progress.pictures += len(batch.images)
        self.progress.seconds += time.monotonic() - started
        return [loss.item() for loss in losses]


def train(run: Path, tokenizer: Any, schedule: Schedule, options: argparse.Namespace) -> None:
    """Run phase B until its time is over or FOLDER/stop appears."""
    joint, log = Joint(run, tokenizer, options), Log(run / "joint.jsonl")
    talks = Talks(tokenizer)
    tests = {name: make_items(name, count, WATCHED) for name, count in QUICK_TESTS.items()}
    progress = joint.progress

    def measure() -> None:
        scores = {name: exact_matches(joint.model, talks.conversations, items) for name, items in tests.items()}
        log(pictures=progress.pictures, **scores)

    to_training(joint.model)
    average: list[float] = []
    saved_at, measured_at = time.monotonic(), progress.pictures
    pools = batches(talks, progress.pictures, LENGTH_POOL * options.batch, options.workers, collate_by_length)
    for batch in itertools.chain.from_iterable(pools):
        losses = joint.step(batch, schedule.factor(progress))
        average = [0.95 * old + 0.05 * new for old, new in zip(average or losses, losses, strict=True)]
        if progress.step % 20 == 0:
            log(**vars(progress), **dict(zip(("language", "dense", "words", "looks"), average, strict=True)))
        if progress.pictures - measured_at >= 3000:
            measure()
            measured_at = progress.pictures
        if time.monotonic() - saved_at > 150:
            joint.save()
            saved_at = time.monotonic()
        if progress.seconds > schedule.budget_s or (run / "stop").exists():
            break
    joint.save()
    measure()


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and log")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a shipped folder to go on from; its fused encoder stays fused")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time over all resumptions")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the minutes over which the rates fall to 0")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak for projector and decoder")
    parser.add_argument("--encoder-lr", type=float, default=4e-4)
    parser.add_argument(
        "--encoder-rests",
        action="store_true",
        help="only projector and decoder learn: twice as fast, and no gradients of a decoder that knows no word yet",
    )
    parser.add_argument("--workers", type=int, default=1, help="drawing processes")
    parser.add_argument("--threads", type=int, default=2, help="threads for tensor arithmetic")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    train(args.run, tokenizer, Schedule(args.minutes * 60, warmup_steps=100, decay=args.decay), args)


if __name__ == "__main__":
    main()
