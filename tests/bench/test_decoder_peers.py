"""Peers of the decoder: our logits in plain torch; wrong conversions are refused; the runtimes, if installed."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fastvlm
from fastvlm.bench.decoder_peers import DecoderPeer, top_log_probs
from fastvlm.bench.inputs import text_prompt
from fastvlm.bench.peers_folder import RUNTIMES
from fastvlm.bench.reference import LIMITS, Reference, write_reference
from fastvlm.errors import MeasurementError
from fastvlm.export.decoder import TokenDecoder, greedy
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.opening import open_checkpoint

PEERS = Path(os.environ.get("FASTVLM_PEERS", Path(__file__).parents[2] / ".venv-peers")).resolve()
MINI = str(checkpoint_path(SHIPPED))
PROMPT_TOKENS = 40


@pytest.fixture(scope="module")
def plain():
    checkpoint = open_checkpoint(MINI)
    return TokenDecoder(checkpoint), text_prompt(checkpoint.processor, PROMPT_TOKENS)["input_ids"]


@pytest.fixture(scope="module")
def expected(plain):
    """Logits and greedy tokens of the model in transformers' classes."""
    model, _ = fastvlm.load(MINI, device="cpu", dtype="float32")
    with torch.inference_mode():
        logits = model(input_ids=plain[1], logits_to_keep=1).logits[0, -1]
        reply = model.generate(input_ids=plain[1], max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return logits, reply[0, plain[1].shape[1] :].tolist()


def test_the_plain_decoder_has_the_models_logits_and_tokens(plain, expected):
    decoder, prompt = plain
    logits, tokens = greedy(decoder, prompt[0].tolist(), 8)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    end = tokens.index(expected[1][-1]) if expected[1][-1] in tokens else len(tokens)
    assert tokens[: min(3, end)] == expected[1][: min(3, end)]


def test_several_sequences_with_a_cache_are_each_alone(plain):
    decoder, prompt = plain
    both = torch.stack((prompt[0, :20], prompt[0, 1:21]))
    positions = torch.arange(20)[None].expand(2, -1)
    with torch.inference_mode():
        whole = decoder(both, positions, *decoder.empty_cache(2))[0]
        _, *cache = decoder(both[:, :13], positions[:, :13], *decoder.empty_cache(2))
        in_parts = decoder(both[:, 13:], positions[:, 13:], *cache)[0]
        alone = decoder(both[1:], positions[1:], *decoder.empty_cache(1))[0]
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-4, atol=1e-4)


def test_the_most_probable_tokens_have_their_log_probabilities():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    ids, values = top_log_probs(logits.numpy())
    assert ids[0] == int(logits.argmax()) and len(ids) == len(values) == 256
    np.testing.assert_allclose(values, logits.log_softmax(0)[ids].numpy(), rtol=1e-5)


class Scripted(DecoderPeer):
    """A runtime that returns given logits, and tokens at given intervals."""

    packages = ("torch",)
    logits = torch.zeros(1)

    def _open(self):
        pass

    def _log_probs(self, prompt):
        return top_log_probs(self.logits.numpy())

    def _replies(self, prompt, num_tokens, num_streams):
        start_s = time.perf_counter()
        times = [start_s + 0.5 * number for number in range(1, num_tokens + 1)]
        return [times] * num_streams, list(range(num_tokens))


@pytest.fixture
def scripted(plain, tmp_path):
    decoder, prompt = plain
    write_reference(MINI, tmp_path / "reference.json", PROMPT_TOKENS, 4)
    found = json.loads((tmp_path / "reference.json").read_text())
    peer = Scripted(MINI, str(tmp_path), prompt_tokens=PROMPT_TOKENS)
    peer._reference = Reference(found["prompt"], np.array(found["log_probs"], dtype=np.float32), found["tokens"])
    peer.logits, _ = greedy(decoder, prompt[0].tolist(), 1)
    return peer


def test_right_logits_are_measured(scripted):
    opened = scripted.open()
    assert opened.facts["logits_distance"] < 1e-3 and "torch" in opened.facts
    assert scripted.decode(9, PROMPT_TOKENS).value == pytest.approx(2.0)
    together = scripted.throughput(8, 9, PROMPT_TOKENS)
    assert together.value == pytest.approx(16.0) and together.check == list(range(9))
    prefill = scripted.prefill(PROMPT_TOKENS)
    assert prefill.value == pytest.approx(0.5, abs=0.1) and prefill.facts["tokens"] == len(scripted.reference.prompt)
    assert scripted.memory().value > 1e6


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_wrong_logits_are_not_timed(scripted, bits):
    scripted.bits = bits
    scripted.logits = scripted.logits.roll(1)  # as of a head with rows in another order
    with pytest.raises(MeasurementError, match="the conversion is wrong, and it is not timed"):
        scripted.open()
    scripted.logits = torch.full_like(scripted.logits, float("nan"))
    with pytest.raises(MeasurementError, match="nan standard deviations"):
        scripted.open()


def test_limits_grow_as_bits_fall():
    assert LIMITS[16] < LIMITS[8] < LIMITS[4] < 3


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("converted")


def need(package):
    if not (PEERS / RUNTIMES / package).is_dir() and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make peers)")


def answers(kind, bits, work):
    """What a worker says to each command."""
    options = {"folder": MINI, "work": str(work), "bits": bits, "threads": 1, "prompt_tokens": PROMPT_TOKENS}
    commands = [
        {"do": "open"},
        {"do": "prefill", "num_tokens": PROMPT_TOKENS},
        {"do": "decode", "num_tokens": 8, "prompt_tokens": PROMPT_TOKENS},
        {"do": "throughput", "num_streams": 3, "num_tokens": 8, "prompt_tokens": PROMPT_TOKENS},
        {"do": "memory"},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fastvlm.bench.worker", kind, json.dumps(options)],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FASTVLM_PEERS": str(PEERS)},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("kind", "package"), [("llama.cpp", "xllamacpp"), ("openvino-decoder", "openvino")])
def test_the_runtimes_have_our_logits(kind, package, bits, work):
    need(package)
    said = answers(kind, bits, work)
    assert all(answer["ok"] and (answer["value"] > 0) for answer in said), said
    opened, prefill, decode, together, _ = said
    assert opened["facts"]["logits_distance"] <= LIMITS[bits]
    assert decode["check"] == together["check"] and decode["check"][0] == prefill["check"][0]
    if bits > 4:
        tokens = json.loads((work / f"reference-{PROMPT_TOKENS}.json").read_text())["tokens"]
        assert decode["check"][:3] == tokens[:3]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
def test_openvinos_encoder_has_our_features(bits, work):
    need("openvino")
    options = {"folder": MINI, "work": str(work), "bits": bits, "threads": 1}
    done = subprocess.run(
        [sys.executable, "-m", "fastvlm.bench.worker", "openvino", json.dumps(options)],
        input='{"do": "open"}\n{"do": "encode", "side_px": 128}\n',
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FASTVLM_PEERS": str(PEERS)},
    )
    opened, encoded = map(json.loads, done.stdout.splitlines())
    assert opened["ok"] and encoded["ok"], (opened, encoded)
    if bits == 8:
        assert 0 < encoded["facts"]["feature_error"] < 0.5
    else:
        from fastvlm.bench.measuring import pixels, sketch

        model, _ = fastvlm.load(MINI, device="cpu", dtype="float32")
        with torch.inference_mode():
            expected = sketch(model.get_image_features(pixels(128)).pooler_output)
        assert encoded["check"] == pytest.approx(expected, rel=1e-2, abs=1e-3)
