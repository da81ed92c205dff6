"""Exported files beside the engine: seconds to encode an image and to read a prompt, tokens a second of one reply.

    fastvlm export mini mini-onnx
    fastvlm export mini mini-openvino --to openvino --dtype int8
    python benchmarks/exports.py mini --onnx mini-onnx --openvino mini-openvino

Each contestant runs in a process of its own, with as many threads as there are cores, and all are measured in turn in
each round. The prompt is a question about one image. Prints a Markdown table of medians, with the range.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fastvlm.backends.generators import finished
from fastvlm.backends.local import make_backend
from fastvlm.backends.native.openmp import num_cores
from fastvlm.backends.onnx import SESSIONS, OnnxBackend
from fastvlm.bench.machine import environment_card
from fastvlm.export.checks import Computes, Sample, samples
from fastvlm.export.openvino_backend import OpenVinoFiles
from fastvlm.export.source import ExportSource, open_source
from fastvlm.formats.exported import EXPORT_FILE
from fastvlm.formats.places import checkpoint_path
from fastvlm.model.joint import join_image_and_text

MEASURES = ("encode, s", "prefill, s", "tokens/s")


def fastvlm_engine(source: ExportSource, bits: int, _folder: Path) -> Computes:
    """The engine's kernels; with 8 bits in the encoder, too, for 8 bits and less."""
    dtype = torch.float32
    if bits == 16:
        return make_backend(source.checkpoint, dtype=dtype, num_slots=1)
    return make_backend(source.checkpoint, dtype=dtype, num_slots=1, bits=bits, encoder_bits=8)


def onnx_files(source: ExportSource, variant: str, folder: Path) -> Computes:
    """ONNX Runtime with a variant of all sessions."""
    config = source.checkpoint.config.text_config
    return OnnxBackend(folder, config, dict.fromkeys(SESSIONS, variant), num_slots=1, threads=num_cores())


def openvino_files(_source: ExportSource, _variant: str, folder: Path) -> Computes:
    """OpenVINO on the files of a folder."""
    return OpenVinoFiles(folder)


OPENERS: dict[str, Callable[..., Computes]] = {
    "fastvlm": fastvlm_engine,
    "onnx": onnx_files,
    "openvino": openvino_files,
}


@torch.inference_mode()
def measured(backend: Computes, sample: Sample, image_token: int, num_tokens: int) -> tuple[float, float, float]:
    """Seconds of the image, seconds of the prompt, and tokens a second behind it."""
    begun = time.perf_counter()
    features = finished(backend.encode(sample.pixel_values)).float()
    encoded = time.perf_counter()
    is_placeholder = torch.tensor([sample.token_ids]) == image_token
    embeds = join_image_and_text(backend.embed(sample.token_ids).float()[None], features, is_placeholder)[0]
    logits = backend.logits(backend.prefill_chunk(embeds, 0, 0))
    token = int(logits[0].argmax())
    filled = time.perf_counter()
    for position in range(len(sample.token_ids), len(sample.token_ids) + num_tokens):
        token = int(backend.decode([token], [0], [position])[0].argmax())
    decoded = time.perf_counter()
    return encoded - begun, filled - encoded, num_tokens / (decoded - filled)


def work(pipe: Connection, model: str, kind: str, variant: Any, folder: Path, num_tokens: int) -> None:
    """A contestant's process: opens, then measures each time that it is asked to."""
    source = open_source(checkpoint_path(model))
    sample = samples(source)[0]
    backend = OPENERS[kind](source, variant, folder)
    image_token = source.checkpoint.config.image_token_index
    measured(backend, sample, image_token, 2)  # the first call prepares
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(measured(backend, sample, image_token, num_tokens))


def contestants(arguments: argparse.Namespace) -> list[tuple[str, str, Any, Path]]:
    """Name, opener, variant and folder of each."""
    found: list[tuple[str, str, Any, Path]] = [
        (f"fastvlm, {bits} bits", "fastvlm", bits, Path()) for bits in arguments.bits
    ]
    for folder in arguments.onnx:
        variants = json.loads((folder / EXPORT_FILE).read_text())["variants"]
        found += [(f"onnxruntime, {variant}", "onnx", variant, folder) for variant in variants]
    for folder in arguments.openvino:
        (variant,) = json.loads((folder / EXPORT_FILE).read_text())["variants"]
        found.append((f"openvino, {variant}", "openvino", variant, folder))
    return found


def rounds(arguments: argparse.Namespace) -> dict[str, list[tuple[float, float, float]]]:
    """Measurements of each contestant, in turn."""
    context = multiprocessing.get_context("spawn")
    open_ones, found = {}, {}
    for name, kind, variant, folder in contestants(arguments):
        pipe, end = context.Pipe()
        settings = (end, arguments.model, kind, variant, folder, arguments.tokens)
        process = context.Process(target=work, args=settings, daemon=True)
        process.start()
        end.close()
        pipe.recv()
        open_ones[name], found[name] = pipe, []
        sys.stderr.write(f"{name} is open\n")
    for number in range(arguments.rounds):
        for name, pipe in open_ones.items():
            pipe.send("go")
            found[name].append(pipe.recv())
        sys.stderr.write(f"round {number + 1} of {arguments.rounds}\n")
    return found


def table(found: dict[str, list[tuple[float, float, float]]]) -> str:
    """Medians with their ranges, in Markdown."""
    lines = [f"| | {' | '.join(MEASURES)} |", "| --- |" + " --- |" * len(MEASURES)]
    for name, values in found.items():
        cells = [
            f"{statistics.median(one):.3g} ({min(one):.3g} to {max(one):.3g})" for one in zip(*values, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the checkpoint that the folders were made from")
    parser.add_argument("--onnx", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--openvino", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--bits", type=int, nargs="*", default=[16, 8, 4], help="of the engine's weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    arguments = parser.parse_args()
    found = rounds(arguments)
    sys.stdout.write(f"{table(found)}\n\n{json.dumps(environment_card())}\n")


if __name__ == "__main__":
    main()
