"""The encoder that the runtimes get is ours, and what they make of it stays so."""

import pytest
import torch

import fastvlm
from fastvlm.bench.encoder_peers import EncoderRuntime, traced_encoder
from fastvlm.bench.measuring import pixels, sketch
from fastvlm.export.graphs import VisionGraph
from fastvlm.opening import open_checkpoint


@torch.no_grad()
def features_of(folder, side_px):
    model, _ = fastvlm.load(folder, device="cpu", dtype="float32")
    return model, model.get_image_features(pixels(side_px)).pooler_output


@torch.no_grad()
def test_the_deployed_encoder_gives_the_models_features(endless):
    _, expected = features_of(endless, 128)
    torch.testing.assert_close(VisionGraph(open_checkpoint(endless))(pixels(128)), expected, rtol=1e-4, atol=1e-5)


class Eager(EncoderRuntime):
    """A runtime that runs the traced network as it is."""

    packages = ("torch",)

    def _compiled(self, image):
        traced = traced_encoder(self.folder, image)
        return lambda array: traced(torch.from_numpy(array))


def test_the_traced_network_is_the_same_and_made_once_a_size(endless, monkeypatch):
    eager = Eager(str(endless))
    assert eager.open().facts["torch"].startswith(torch.__version__.split("+")[0])
    for side in (128, 192):
        _, expected = features_of(endless, side)
        assert eager.encode(side).check == pytest.approx(sketch(expected), rel=1e-3, abs=1e-5)
    monkeypatch.setattr(eager, "_compiled", None)
    assert eager.encode(128).value > 0 and eager.memory().value > 0
