"""Engines over tiny models, and `generate` beside them."""

import math

import compiled
import engines
import natives
import pytest
import tiny
import torch

from fastvlm.engine.types import SamplingParams


class Letters:
    """Stands in for a processor where prompts are ids already: each token is one letter."""

    def decode(self, token_ids, skip_special_tokens=True):
        return "".join(chr(0x4E00 + int(token)) for token in token_ids if token != tiny.END_ID)


class Sides:
    """One question on both sides: `inputs` for the engine and for `generate`."""

    def __init__(self, layout, *, seed=2, images=None):
        self.ids = tiny.prompt(layout, seed=seed)
        self.inputs = {"input_ids": torch.tensor([self.ids])}
        if images is not None:
            self.inputs["pixel_values"] = images

    def generated(self, model, max_new_tokens=12):
        """The reply of `generate`, the reference."""
        reply = model.generate(**self.inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return tuple(reply[0, len(self.ids) :].tolist())


class Encoder:
    """The model's encoder, counting images."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, pixel_values):
        self.calls.append(len(pixel_values))
        with torch.no_grad():
            return self.model.get_image_features(pixel_values).pooler_output


@pytest.fixture(scope="session")
def model():
    return tiny.model()


@pytest.fixture
def encoder(model):
    return Encoder(model)


@pytest.fixture
def make_engine(model, encoder):
    def make(**settings):
        usual = {"num_slots": 3, "encode": encoder, "admission_ratio": math.inf}  # steps that do not depend on time
        return engines.engine(model, Letters(), **{**usual, **settings})

    return make


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def question():
    """``question("titt", seed=3)``, with the images that its layout needs."""

    def make(layout, *, seed=2, image_seed=1, images=None):
        count = layout.count("i")
        if images is None and count:
            images = tiny.images(count, seed=image_seed)
        return Sides(layout, seed=seed, images=images)

    return make


@pytest.fixture
def drain():
    """Step until nothing is left to do; token ids of each request, and its last event."""

    def run(engine):
        tokens, last = {}, {}
        while engine.has_work:
            for event in engine.step():
                tokens.setdefault(event.request_id, []).extend([] if event.token_id is None else [event.token_id])
                assert event.request_id not in last, "an event after the last one"
                if event.finish_reason is not None:
                    last[event.request_id] = event
        return {request: tuple(ids) for request, ids in tokens.items()}, last

    return run


@pytest.fixture
def short():
    """Greedy settings of the usual length."""
    return SamplingParams(max_new_tokens=12)


@pytest.fixture(autouse=True)
def _compiled_kernels(request, monkeypatch):
    """Tests of compiled kernels have some on every CPU; all others have those of this machine."""
    if request.path.name.startswith("test_native"):
        compiled.prepare(monkeypatch)


@pytest.fixture(scope="session")
def library():
    """Path of a library of compiled kernels."""
    return natives.library()


@pytest.fixture(scope="session")
def kernels():
    return natives.built()
