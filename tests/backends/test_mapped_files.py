"""An engine whose weight files change under it says so, and lives."""

import copy
import os
import pickle
from pathlib import Path

import parrot
import pytest
import warm_process

from fastvlm.errors import CheckpointError
from fastvlm.formats.mapped_files import MappedFiles

# In a process of its own: where nothing is checked, this ends by SIGBUS.
ASK_TWICE = """
import sys, shutil
from pathlib import Path
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import CheckpointError
import fastvlm

folder, change, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "folder":
    engine = Engine.from_checkpoint(fastvlm.open_checkpoint(folder))
else:
    engine = Engine.from_model(*fastvlm.load(folder, device="cpu"))
ask = lambda: engine.generate([{"role": "user", "content": "Hello?"}], SamplingParams(max_new_tokens=3)).text
first = ask()
file = folder / "model.safetensors"
if change == "truncated":
    with file.open("r+b") as stream:
        stream.truncate(100)
elif change == "replaced":
    shutil.copyfile(file, folder / "new")
    (folder / "new").rename(file)
try:
    print("same" if ask() == first else "other")
except CheckpointError as error:
    print(error)
print("work left:", engine.has_work and bool(engine.cancel(2)))
raise SystemExit
"""


@pytest.mark.parametrize("how", ["folder", "model"])
@pytest.mark.parametrize(
    ("change", "words"), [("truncated", "was written to while its weights were in use"), ("replaced", "same")]
)
def test_the_next_request_tells(tmp_path, change, words, how):
    folder = parrot.save(tmp_path / "parrot")
    status, out, err = warm_process.run([str(folder), change, how], dict(os.environ), code=ASK_TWICE)
    assert status == 0, (status, err[-1000:])
    assert words in out


def test_every_way_of_writing_is_seen_and_renaming_is_none(tmp_path):
    file = tmp_path / "model.safetensors"
    for change in (
        lambda: os.truncate(file, 10),
        lambda: file.write_bytes(bytes(100)),
        lambda: os.truncate(file, 1000),
    ):
        file.write_bytes(bytes(100))
        os.utime(file, ns=(0, 0))  # whatever the clock's steps
        files = MappedFiles([file, tmp_path / "missing"])
        files.check()
        change()
        with pytest.raises(CheckpointError, match=r"model\.safetensors was written to.*had 100 bytes"):
            files.check()
    files = MappedFiles([file])
    (tmp_path / "new").write_bytes(bytes(5))
    (tmp_path / "new").rename(file)
    files.check()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files on Linux")
def test_files_are_closed_with_the_last_model(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    files = MappedFiles([file])
    shared, other = copy.deepcopy(files), pickle.loads(pickle.dumps(files))
    assert shared is files and len(list(Path("/proc/self/fd").iterdir())) == before + 2
    del files, shared, other
    assert len(list(Path("/proc/self/fd").iterdir())) == before
