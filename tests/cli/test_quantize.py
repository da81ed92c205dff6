"""`fastvlm quantize`: a new folder that opens by itself, all or nothing; and opening with fewer bits."""

import json
import os
import shutil
import signal
from pathlib import Path

import engines
import parrot
import pytest
import torch
import warm_process
from cli_process import plain_environment

import fastvlm as package
from fastvlm.engine.engine import Engine
from fastvlm.formats.quantized_metadata import QUANTIZED_FILE, REST_FILE

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {"config.json", "tokenizer.json", "preprocessor_config.json", QUANTIZED_FILE, REST_FILE}


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module", params=[("8", "8"), ("4", "8"), ("4", "4")], ids="-".join)
def rounded(request, tmp_path_factory, parrot_folder):
    """A folder made by the command in a process of its own, and its bits."""
    bits, head_bits = request.param
    target = tmp_path_factory.mktemp("rounded") / "it"
    command = ["quantize", str(parrot_folder), str(target), "--bits", bits, "--head-bits", head_bits]
    assert warm_process.run(command, plain_environment()) == (0, f"{target}\n", "")
    return target, int(bits), int(head_bits)


def test_the_folder_opens_like_any_other(process, rounded, image):
    folder = rounded[0]
    assert set(content(folder)) >= FILES and "model.safetensors" not in content(folder)
    before = content(folder)
    outcome = process("ask", image, "What?", "-m", folder)
    assert (outcome.code, outcome.out, outcome.err) == (0, parrot.SENTENCE + "\n", "")
    assert content(folder) == before


def test_weights_are_stored_once(rounded, parrot_folder):
    size = sum(len(data) for name, data in content(rounded[0]).items() if name.endswith(".safetensors"))
    model, _ = package.load(parrot_folder)
    text = model.model.language_model
    products = sum(p.numel() for name, p in text.layers.named_parameters() if "proj.weight" in name)
    products += model.lm_head.weight.numel()
    rest = sum(t.nbytes for t in model.state_dict().values()) - 4 * products
    assert size < rest + 1.3 * products


def logits(engine, ids=(5, 9, 7, 33, 21)):
    decoder = engine.backend.decoder
    first = engines.prefilled(decoder, decoder.embed(ids), 0)
    return torch.stack([first, decoder.decode([44], [0], [len(ids)])[0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_is_what_rounding_while_opening_gives(rounded, parrot_folder, dtype):
    folder, bits, head_bits = rounded
    if head_bits == 4:
        pytest.skip("opening rounds a head to 8 bits")
    settings = {"dtype": getattr(torch, dtype)}
    stored = Engine.from_checkpoint(package.open_checkpoint(folder), **settings)
    fresh = Engine.from_checkpoint(package.open_checkpoint(parrot_folder), bits=bits, **settings)
    assert logits(stored).dtype == getattr(torch, dtype)
    assert torch.equal(logits(stored), logits(fresh))


def test_in_python_it_opens_with_rounded_weights_as_plain_ones(rounded, parrot_folder):
    folder = rounded[0]
    model, _ = package.load(folder)
    original, _ = package.load(parrot_folder)
    state, before = model.state_dict(), original.state_dict()
    assert state.keys() == before.keys()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed <= {name for name in state if "proj.weight" in name or name == "lm_head.weight"}
    assert all((state[name] - before[name]).norm() < 0.15 * before[name].norm() for name in changed)


def test_other_bits_than_stored_are_refused(fastvlm, rounded, image):
    folder, bits, _ = rounded
    assert fastvlm("ask", image, "What?", "-m", folder, "--bits", bits).out == parrot.SENTENCE + "\n"
    outcome = fastvlm("ask", image, "What?", "-m", folder, "--bits", 12 - bits)
    assert outcome.code == 2 and f"stored in {bits}" in outcome.error


def test_info_tells(fastvlm, rounded, parrot_folder):
    folder, bits, head_bits = rounded
    facts = json.loads(fastvlm("info", folder, "--json").out)
    told = facts["quantized"]
    assert (told["bits"], told["head_bits"], told["group_size"]) == (bits, head_bits, 32)
    assert 0 < told["mean_error"] < 0.15 and facts["num_files"] == 2
    before = json.loads(fastvlm("info", parrot_folder, "--json").out)
    assert facts["parameters"] == before["parameters"] and before["quantized"] is None
    assert f"decoder in {bits} bits, head in {head_bits}" in fastvlm("info", folder).out


def test_it_can_be_converted_to_a_plain_checkpoint(fastvlm, rounded, tmp_path):
    plain = tmp_path / "plain"
    assert fastvlm("convert", rounded[0], plain).code == 0
    ours, theirs = package.load(rounded[0])[0].state_dict(), package.load(plain)[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_json_and_the_name_that_is_chosen(fastvlm, parrot_folder, workplace):
    outcome = fastvlm("quantize", parrot_folder, "--bits", "4", "--group-size", "64", "--json")
    report = json.loads(outcome.out)
    folder = workplace / "parrot-int4"
    assert outcome.err == "" and report["path"] == str(folder)
    assert report["options"] == {"bits": 4, "group_size": 64, "head_bits": 8, "encoder_bits": 16}
    assert report["quantized_bytes"] < report["source_bytes"] and report["error"]["mean"] > 0
    shutil.rmtree(folder)


def test_a_tied_head_keeps_its_table(fastvlm, tmp_path, image):
    target = tmp_path / "mini8"
    assert fastvlm("quantize", "mini", target).code == 0
    assert json.loads(fastvlm("info", target, "--json").out)["is_head_tied"] is True
    model, _ = package.load(target)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    plain = fastvlm("ask", EXAMPLES / "red_star.png", "What shape is this?", "--bits", "8")
    stored = fastvlm("ask", EXAMPLES / "red_star.png", "What shape is this?", "-m", target)
    assert plain.code == stored.code and plain.out == stored.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "2"], "--bits is 2; expected one of 8, 4"),
        (["--head-bits", "16"], "--head-bits is 16"),
        (["--encoder-bits", "4"], "--encoder-bits is 4; expected one of 16, 8"),
        (["--group-size", "48"], "--group-size is 48; expected one of 32, 64, 128"),
    ],
)
def test_impossible_options(fastvlm, parrot_folder, tmp_path, options, words):
    outcome = fastvlm("quantize", parrot_folder, tmp_path / "x", *options)
    assert outcome.code == 2 and words in outcome.error
    assert not (tmp_path / "x").exists()


def test_opening_in_other_bits_is_refused(fastvlm, image):
    outcome = fastvlm("ask", image, "What?", "--bits", "2")
    assert outcome.code == 2 and "--bits is 2; expected 16, 8 or 4" in outcome.error
    outcome = fastvlm("ask", image, "What?", "--encoder-bits", "4")
    assert outcome.code == 2 and "--encoder-bits is 4; expected 16 or 8" in outcome.error


def test_an_encoder_of_8_bits(fastvlm, parrot_folder, tmp_path, image):
    target = tmp_path / "it"
    report = json.loads(fastvlm("quantize", parrot_folder, target, "--encoder-bits", "8", "--json").out)
    assert report["options"]["encoder_bits"] == 8
    assert json.loads(fastvlm("info", target, "--json").out)["quantized"]["encoder_bits"] == 8
    assert "head in 8, encoder in 8" in fastvlm("info", target).out
    for arguments in (
        ["-m", target],
        ["-m", target, "--encoder-bits", "8"],
        ["-m", parrot_folder, "--encoder-bits", "8"],
    ):
        assert fastvlm("ask", image, "What?", *arguments).out == parrot.SENTENCE + "\n"
    plain = tmp_path / "plain"
    assert fastvlm("convert", target, plain).code == 0
    ours, theirs = package.load(target)[0].state_dict(), package.load(plain)[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_nothing_is_overwritten_and_nothing_rounded_twice(fastvlm, parrot_folder, rounded, tmp_path):
    (tmp_path / "mine").mkdir()
    outcome = fastvlm("quantize", parrot_folder, tmp_path / "mine")
    assert outcome.code == 2 and "nothing is overwritten" in outcome.error
    outcome = fastvlm("quantize", rounded[0], tmp_path / "twice")
    assert outcome.code == 2 and f"{rounded[1]}-bit weights already" in outcome.error
    assert [path.name for path in tmp_path.iterdir() if path.name != "workplace"] == ["mine"]


STOPPED = """
import os, threading
from fastvlm.conversion import quantize as quantizing
save = quantizing.save_quantized
def save_and_wait(quantized, file):
    save(quantized, file)
    os.kill(os.getpid(), {sent})
    threading.Event().wait()
quantizing.save_quantized = save_and_wait
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=str)
def test_killed_half_way_there_is_no_folder(parrot_folder, tmp_path, sent, code):
    target = tmp_path / "stopped"
    command = ["quantize", str(parrot_folder), str(target)]
    status, out, err = warm_process.run(command, plain_environment(), code=STOPPED.format(sent=int(sent)))
    assert status == code and out == "" and "Traceback" not in err
    assert not target.exists()
    if sent != signal.SIGKILL:  # which nobody can clean up after, but the next run
        assert list(tmp_path.iterdir()) == []
    assert warm_process.run(command, plain_environment())[0] == 0 and list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_nothing(fastvlm, parrot_folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastvlm.conversion.quantize.write_safetensors", fail)
    outcome = fastvlm("quantize", parrot_folder, tmp_path / "full")
    assert outcome.code == 1 and "No space left on device" in outcome.error
    assert not [path for path in tmp_path.iterdir() if "full" in path.name]


def test_a_folder_that_cannot_be_written_to_is_told(fastvlm, parrot_folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fastvlm.storage.locks._acquired", refuse)
    outcome = fastvlm("quantize", parrot_folder, tmp_path / "x")
    assert outcome.code == 2 and "cannot be written: Permission denied" in outcome.error


def test_a_source_that_is_read_only_is_read(process, parrot_folder, tmp_path):
    source = shutil.copytree(parrot_folder, tmp_path / "source")
    for file in source.iterdir():
        file.chmod(0o444)
    source.chmod(0o555)
    before = content(source)
    assert process("quantize", source, tmp_path / "target").code == 0
    assert content(source) == before
    source.chmod(0o755)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "target").iterdir()}
    assert modes[QUANTIZED_FILE] == modes[REST_FILE] == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture
def broken(rounded, tmp_path):
    """A copy to break."""
    return shutil.copytree(rounded[0], tmp_path / "broken")


@pytest.mark.parametrize("name", [QUANTIZED_FILE, REST_FILE])
@pytest.mark.parametrize("verb", ["ask", "info"])
def test_a_file_that_is_cut_off(fastvlm, broken, image, name, verb):
    with (broken / name).open("rb+") as stream:
        stream.truncate((broken / name).stat().st_size - 1000)
    arguments = ("ask", image, "What?", "-m", broken) if verb == "ask" else ("info", broken)
    outcome = fastvlm(*arguments)
    assert outcome.code == 1 and name in outcome.error and "gain" in outcome.error


def test_a_file_that_is_missing(fastvlm, broken):
    (broken / QUANTIZED_FILE).unlink()
    outcome = fastvlm("info", broken)
    assert outcome.code == 1 and QUANTIZED_FILE in outcome.error
    (broken / REST_FILE).unlink()
    outcome = fastvlm("info", broken)
    assert outcome.code == 1 and "holds no weights" in outcome.error


def test_another_models_file_is_refused(fastvlm, broken, image, tmp_path):
    other = tmp_path / "other"
    assert fastvlm("quantize", "mini", other).code == 0
    shutil.copy(other / QUANTIZED_FILE, broken / QUANTIZED_FILE)
    outcome = fastvlm("ask", image, "What?", "-m", broken)
    assert outcome.code == 1 and "different checkpoints" in outcome.error
