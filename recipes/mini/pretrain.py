"""Phase A: the encoder alone learns, in its multi-branch form, what stands where.

    python -m recipes.mini.pretrain --run FOLDER --minutes 35

Stopped at any time it goes on from FOLDER/encoder.pt when started again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recipes.mini.dense import DenseTarget, dense_target
from recipes.mini.dense_head import DenseBatch, DenseHead, dense_accuracy, dense_loss
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
from recipes.mini.mix import ENCODER_MIX, draw
from torch import Tensor
from torch.utils.data import Dataset

from fastvlm.demo_data.canvas import SIZE
from fastvlm.demo_data.scene import Scene
from fastvlm.hf.config import FastVlmConfig
from fastvlm.model.blocks import ConvFFN
from fastvlm.model.fastvithd import FastViTHD

PEAK_LR = 1.5e-3
LATE_SHARE = 0.4
# Pictures after which the BatchNorms keep the statistics they have, see `to_training`.
BATCH_STATISTICS_FOR = 3_000
TEST_TOPICS = ("letter", "word", "grid", "shapes", "emoji")
Sample = tuple[np.ndarray, DenseTarget]


class Drawings(Dataset[Sample]):
    """Picture number `index` of the encoder's mix, with its dense target."""

    def __getitem__(self, index: int) -> Sample:
        return shown(draw("encoder", index, ENCODER_MIX)[0])


def shown(scene: Scene) -> Sample:
    """A drawn picture (SIZE, SIZE, 3) uint8, with its targets."""
    return pixels_of(scene.image), dense_target(scene)


def pixels_of(image: Image.Image) -> np.ndarray:
    """A picture (SIZE, SIZE, 3) uint8, resized as the image processor does it."""
    return np.asarray(image if image.width == SIZE else image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def collate_dense(targets: list[DenseTarget]) -> DenseBatch:
    """The targets of several pictures as tensors."""
    return DenseBatch(
        torch.from_numpy(np.stack([target.classes for target in targets])),
        torch.from_numpy(np.stack([target.colours for target in targets])),
        torch.from_numpy(np.stack([target.emoji for target in targets])),
    )


def collate(samples: list[Sample]) -> tuple[Tensor, DenseBatch]:
    """(B, 256, 256, 3) uint8 and the targets."""
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, collate_dense([target for _, target in samples])


def new_encoder() -> FastViTHD:
    """The mini's encoder in training form.

    The published initial values (layer scales of 1e-5, standard deviations of 0.02) are made for widths of hundreds
    and weeks of training. With them, at these widths, the FFN branches are all but off, and after 6,000 pictures
    nothing but colours had been learnt. So: matrices by their fan-in, and layer scales that count at once.
    """
    config = FastVlmConfig.preset("mini").vision_config
    config.model_args = {**(config.model_args or {}), "inference_mode": False}
    encoder = FastViTHD(config)
    for name, parameter in encoder.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, ConvFFN):
            for layer in (module.fc1, module.fc2):
                torch.nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def new_head(encoder: FastViTHD) -> DenseHead:
    """A dense head that fits the encoder."""
    return DenseHead([stage.channels for stage in encoder.config.stages], encoder.config.hidden_size)


def to_training(model: torch.nn.Module, pictures: int = BATCH_STATISTICS_FOR) -> None:
    """Training mode; from BATCH_STATISTICS_FOR pictures on, BatchNorms stay at their running statistics, as when fused.

    The statistics of a dozen pictures with plain backgrounds are noise that drowns colours: with them, the stride 16
    head named 65 % of shapes and 61 % of colours; with the running ones, the same weights named 75 % and 70 %.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train(pictures < BATCH_STATISTICS_FOR)


def encoder_groups(encoder: FastViTHD, head: torch.nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of the encoder and its dense head, where the wide last stages get LATE_SHARE of the rate.

    At the full rate a step moves a sum of 1,536 inputs so far that the residual stream of the last stage grew twenty
    times and buried what the stages before had seen.
    """
    late = torch.nn.ModuleList([*list(encoder.stages)[3:], encoder.final_conv])
    early = torch.nn.ModuleList([encoder.stem, *list(encoder.stages)[:3], head])
    return decayed_groups(early, lr, weight_decay) + decayed_groups(late, LATE_SHARE * lr, weight_decay)


@torch.no_grad()
def measure(encoder: FastViTHD, head: DenseHead, count: int = 48) -> dict[str, float]:
    """Accuracy per kind of picture, drawn in fonts and from seeds that training never sees."""
    encoder.eval()
    report: dict[str, float] = {}
    for topic in TEST_TOPICS:
        scenes = (draw("encoder", index, {topic: 1}, "test")[0] for index in range(count))
        images, target = collate([shown(scene) for scene in scenes])
        scores = dense_accuracy(head(*encoder.forward_with_stages(to_pixels(images))), target)
        for name in ("emoji",) if topic == "emoji" else ("things", "stride_16", "colours"):
            right, total = scores[name]
            report[f"{topic}_{name}"] = right / max(1, total)
    return report


def train(run: Path, schedule: Schedule, options: argparse.Namespace) -> None:
    """Run phase A until its time is over or FOLDER/stop appears."""
    torch.manual_seed(0)
    encoder = new_encoder()
    head = new_head(encoder)
    optimizer = torch.optim.AdamW(encoder_groups(encoder, head, PEAK_LR, 0.05), betas=(0.9, 0.98), fused=True)
    progress, log, path = Progress(), Log(run / "encoder.jsonl"), run / "encoder.pt"
    state = load_state(path)
    if state is not None:
        encoder.load_state_dict(state["encoder"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])

    def save() -> None:
        parts = {"encoder": encoder.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(path, progress, parts)

    running, saved_at, measured_at = 0.0, time.monotonic(), progress.pictures
    for images, target in batches(Drawings(), progress.pictures, options.batch, options.workers, collate):
        started = time.monotonic()
        to_training(encoder, progress.pictures)
        set_learning_rate(optimizer, schedule.factor(progress))
        loss = dense_loss(head(*encoder.forward_with_stages(to_pixels(images))), target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        optimizer.step()
        progress.step += 1
        progress.pictures += len(images)
        progress.seconds += time.monotonic() - started
        running = 0.95 * running + 0.05 * loss.item() if running else loss.item()
        if progress.step % 20 == 0:
            log(**vars(progress), loss=running, rate=progress.pictures / progress.seconds)
        if progress.pictures - measured_at >= 3000:
            log(pictures=progress.pictures, **measure(encoder, head))
            measured_at = progress.pictures
        if time.monotonic() - saved_at > 150:
            save()
            saved_at = time.monotonic()
        if progress.seconds > schedule.budget_s or (run / "stop").exists():
            break
    save()
    log(pictures=progress.pictures, **measure(encoder, head, 200))


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and log")
    parser.add_argument("--minutes", type=float, default=35.0, help="training time over all resumptions")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="drawing processes")
    parser.add_argument("--threads", type=int, default=2, help="threads for tensor arithmetic")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.run, Schedule(args.minutes * 60, warmup_steps=50, decay=0.15, floor=0.1), args)


if __name__ == "__main__":
    main()
