"""What `make gpu-check` checks on a GPU: the engine says there what `generate` says there. Needs no pytest, no network.

On a CPU the same checks are tests (tests/engine/test_fixed_shapes.py); there nothing is captured.

    PYTHONPATH=src python tests/gpu_check.py [--device cuda]
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import traceback
from pathlib import Path

import engines
import torch

import fastvlm
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = ("red_star", "five_shapes", "letter", "word")
GREEDY = SamplingParams(max_new_tokens=12)


@functools.cache
def open_model(device, dtype):
    """The shipped model on `device` and its processor; an engine leaves them as they are."""
    return fastvlm.load("mini", device=device, dtype=dtype)


def open_engine(device, dtype=torch.float32):
    """The shipped model on `device`, its processor, and an engine on buffers of fixed shape."""
    model, processor = open_model(device, dtype)
    if torch.device(device).type == "cpu":
        return model, processor, engines.engine(model, processor, num_slots=3, has_fixed_shapes=True)
    return model, processor, Engine.from_model(model, processor, num_slots=3)


def question(image, text="What do you see?"):
    """One user's turn."""
    content = [{"type": "image", "path": str(EXAMPLES / f"{image}.png")}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@functools.cache
def generated(device, image, text="What do you see?"):
    """The reply of `generate` in float32, without its end."""
    model, processor = open_model(device, torch.float32)
    messages = question(image, text)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    reply = model.generate(**inputs, max_new_tokens=GREEDY.max_new_tokens, do_sample=False)
    return without_end(model, reply[0, inputs["input_ids"].shape[1] :].tolist())


def without_end(model, ids):
    """Tokens up to the end of the reply."""
    return [token for token in ids if token not in set(model.config.stop_token_ids)]


def check_one_after_the_other(device):
    """Greedy replies in float32, token for token, and that they came from captured graphs on a GPU."""
    model, _, engine = open_engine(device)
    for image in IMAGES:
        reply = engine.generate(question(image), GREEDY)
        assert without_end(model, reply.token_ids) == generated(device, image), image
    captured = engine.backend.decoder.fixed.num_captured
    assert (captured > 0) == (torch.device(device).type == "cuda"), f"{captured} graphs were captured"


def check_side_by_side(device):
    """The same for requests that run together, of which one joins late."""
    model, _, engine = open_engine(device)
    expected = [generated(device, image) for image in IMAGES]
    ids = [engine.submit(question(image), GREEDY) for image in IMAGES[:2]]
    events = engine.step() + engine.step()
    ids += [engine.submit(question(image), GREEDY) for image in IMAGES[2:]]
    while engine.has_work:
        events += engine.step()
    done = {event.request_id: event.completion for event in events if event.completion is not None}
    assert [without_end(model, done[i].token_ids) for i in ids] == expected


def check_second_question(device):
    """A second question about the same image, over what the first left in the cache."""
    model, _, engine = open_engine(device)
    engine.generate(question("five_shapes"), GREEDY)
    text = "How many shapes are there?"
    reply = engine.generate(question("five_shapes", text), GREEDY)
    assert reply.usage.cached_prompt_tokens > 0
    assert without_end(model, reply.token_ids) == generated(device, "five_shapes", text)


def check_features(device):
    """Visual tokens in float32, of two shapes of images in turn."""
    model, _, engine = open_engine(device)
    for side in (256, 128, 256):
        pixels = torch.rand(2, 3, side, side)
        with torch.no_grad():
            expected = model.get_image_features(pixels.to(device)).pooler_output
        gap = (engine.encode(pixels) - expected).norm() / expected.norm()
        assert gap < 1e-4, f"{side} px: {gap:.1e}"


def check_bfloat16(device):
    """Logits of a step in bfloat16 beside float32's on a CPU."""
    rows = []
    for where, dtype in ((device, torch.bfloat16), ("cpu", torch.float32)):
        decoder = open_engine(where, dtype)[2].backend.decoder
        decoder.logits(decoder.prefill_chunk(decoder.embed(range(5, 25)), 1))
        rows.append(decoder.decode([44], [1], [20])[0].float().cpu().clone())
    gap = (rows[0] - rows[1]).norm() / rows[1].norm()
    assert gap < 0.05, f"{gap:.3f}"


CHECKS = (check_one_after_the_other, check_side_by_side, check_second_question, check_features, check_bfloat16)


def main() -> int:
    """Run all checks; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        print("gpu_check: there is no CUDA device here.", file=sys.stderr)
        return 2
    failed = 0
    for check in CHECKS:
        start_s = time.perf_counter()
        try:
            check(device)
            outcome = "ok"
        except Exception:  # noqa: BLE001 - told, counted, and the next check goes on
            traceback.print_exc()
            outcome, failed = "FAILED", failed + 1
        print(f"{outcome:<7}{check.__name__} on {device}, {time.perf_counter() - start_s:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
