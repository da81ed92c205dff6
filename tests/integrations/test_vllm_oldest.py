"""The oldest version of vLLM that is supported, which Ray's own layers ask for: the processor and replies."""

import pytest
import torch
from server_process import ROOT
from vllm_process import CONVERSATIONS, Reference, compared, marks, run

from fastvlm.formats.places import checkpoint_path

pytestmark = marks("0.29.0")


@pytest.fixture(scope="module")
def reference():
    return Reference(checkpoint_path("mini"))


def test_pixels_and_replies(tmp_path, reference):
    batches = [{"conversations": [conversation]} for conversation in CONVERSATIONS[:2]]
    found = run(tmp_path, checkpoint_path("mini"), batches, version="0.29.0", pixels=tmp_path / "pixels.pt")
    assert [compared(reply) for (reply,) in found] == [reference(conversation) for conversation in CONVERSATIONS[:2]]
    (ours,) = reference.processor(images=[str(ROOT / "examples/letter.png")])["pixel_values"]
    (theirs,) = torch.load(tmp_path / "pixels.pt")
    assert torch.equal(theirs, ours)
