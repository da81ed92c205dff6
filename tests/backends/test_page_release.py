"""Pages of a mapped file: which are given back, that nothing is lost by it, and what it saves."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastvlm.backends import page_release
from fastvlm.backends.cpu.int8 import int8_linear
from fastvlm.backends.cpu.linear import PackedLinear, PackedLinears, packed_linear
from fastvlm.backends.page_release import release_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="done on Linux alone")

SHAPE = (1500, 999)


@pytest.fixture
def row(tmp_path):
    """Three bfloat16 tensors one after the other in a mapped file, all of whose pages have been read."""
    torch.manual_seed(0)
    names = ("a", "b", "c")
    save_file({name: torch.randn(SHAPE).bfloat16() for name in names}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        tensors = [opened.get_tensor(name) for name in names]
    assert all(tensor.isfinite().all() for tensor in tensors)
    return tensors


@pytest.fixture
def mapped(row):
    """The one in the middle."""
    return row[1]


def resident_bytes(tensor):
    """How much of the memory of `tensor` is in the process."""
    first, last = tensor.data_ptr() // 4096, (tensor.data_ptr() + tensor.nbytes - 1) // 4096
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        words = pagemap.read(8 * (last - first + 1))
    return 4096 * sum(byte >> 7 for byte in words[7::8])


def test_pages_of_a_file_leave_and_come_back_with_the_same_values(mapped):
    before = mapped.clone()
    assert resident_bytes(mapped) >= mapped.nbytes
    assert mapped.nbytes <= release_pages(mapped) < mapped.nbytes + 8192
    assert resident_bytes(mapped) == 0
    assert torch.equal(mapped, before)
    assert resident_bytes(mapped) >= mapped.nbytes


@pytest.mark.parametrize("place", [(0, 0), (700, 500), (-1, -1)])
def test_what_was_written_since_is_never_lost(mapped, place):
    """The page exists in this process alone; dropping it would bring the file's values back."""
    mapped[place] = 77.0
    assert release_pages(mapped) == 0
    assert mapped[place] == 77.0


def test_a_neighbor_that_was_written_to_is_not_lost(row):
    """It shares a page with what is given back."""
    first, mapped, last = row
    assert first.data_ptr() + first.nbytes == mapped.data_ptr() and mapped.data_ptr() % 4096
    first[-1, -1], last[0, 0] = 77.0, 78.0
    release_pages(mapped)
    assert (first[-1, -1], last[0, 0]) == (77.0, 78.0)


def test_memory_that_is_no_files_stays():
    own = torch.randn(SHAPE)
    before = own.clone()
    assert release_pages(own) == 0
    assert torch.equal(own, before)
    shared = own.clone().share_memory_()  # as between the processes of a data loader
    release_pages(shared)
    assert torch.equal(shared, before)


def test_what_is_no_piece_of_memory_is_left_alone(mapped):
    assert release_pages(mapped.T) == release_pages(mapped[:, :5]) == release_pages(mapped[:0]) == 0
    assert release_pages(torch.empty(SHAPE, device="meta")) == 0
    assert resident_bytes(mapped) >= mapped.nbytes


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_without_the_table_of_pages_nothing_is_given_back(mapped, monkeypatch, tmp_path, content):
    table = tmp_path / "pagemap"
    if content is not None:
        table.write_bytes(content)
    monkeypatch.setattr(page_release, "_PAGEMAP", table)
    assert release_pages(mapped) == 0
    monkeypatch.setattr(page_release, "_madvise", page_release._madvise.__wrapped__)
    assert release_pages(mapped) == 0


def test_elsewhere_nothing_is_done(mapped, monkeypatch):
    monkeypatch.setattr(page_release, "_madvise", lambda: None)
    assert release_pages(mapped) == 0
    assert resident_bytes(mapped) >= mapped.nbytes


@pytest.mark.parametrize("make", [PackedLinears(torch.float32), int8_linear])
def test_who_lays_a_weight_out_anew_gives_it_back(mapped, make):
    x = torch.randn(3, SHAPE[1])

    def layer(weight):
        return make([weight], [None], is_head=False) if isinstance(make, PackedLinears) else make(weight, None)

    expected, made = layer(mapped.clone())(x), layer(mapped)
    assert resident_bytes(mapped) == 0
    assert torch.equal(made(x), expected)


def test_who_computes_with_a_weight_as_it_lies_keeps_it(mapped):
    made = packed_linear(mapped, None)
    assert bool(resident_bytes(mapped)) is not isinstance(made, PackedLinear)


PEAK_GROWTH = """
import sys, torch
from pathlib import Path
from fastvlm.bench.memory import peak_bytes
from fastvlm.backends.cpu import linear
from fastvlm.backends.decoder_weights import prepare_decoder
from fastvlm.hf.modeling import FastVlmForConditionalGeneration

linear.LARGEST_BUFFER = 3_000_000  # less than this model's head, as with the published ones
model = FastVlmForConditionalGeneration.from_pretrained(sys.argv[1], dtype="auto")
checkpoint = model.to_checkpoint(None)
before = peak_bytes()
weights = prepare_decoder(checkpoint, linear.PackedLinears(torch.float32), None, torch.float32, torch.device("cpu"))
print(peak_bytes() - before, weights.own_bytes)
"""


def test_packing_takes_no_more_memory_than_the_packed_weights(tmp_path):
    """Without giving back it is 1.5 times as much, with the head's copy at the end 1.9 times."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 30_000}
    tiny.model(text={**text, "tie_word_embeddings": True}).bfloat16().save_pretrained(tmp_path)
    # A fresh process: a forked one begins with the memory of its parent.
    command = [sys.executable, "-c", PEAK_GROWTH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    grown, packed = map(int, done.stdout.split())
    assert packed > 100_000_000
    assert grown < 1.25 * packed
