"""`fastvlm pull`, `ls`, `rm`: against a server that speaks the Hub's protocol, each command in its own process."""

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import hear_ctrl_c, plain_environment
from hub_server import COMMIT, HubServer

NAME = "apple/FastVLM-tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def repository(tmp_path, parrot_folder):
    """The files of a repository, some of which no checkpoint needs."""
    folder = tmp_path / "repository"
    shutil.copytree(parrot_folder, folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: apple-amlr\n---\n# Card\n")
    (folder / "LICENSE").write_text("Apple Machine Learning Research Model\nLicense Agreement\n")
    for unneeded in ("llava_qwen.py", "accuracy.png", "pytorch_model.bin", "onnx/model.safetensors"):
        (folder / unneeded).parent.mkdir(exist_ok=True)
        (folder / unneeded).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(repository):
    with HubServer(repository) as server:
        yield server


@pytest.fixture
def settings(hub, tmp_path):
    """Environment of the commands: this Hub, a cache and a home of this test."""
    home = {"HF_HOME": str(tmp_path / "hf"), "FASTVLM_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", **home}


@pytest.fixture
def command(process, settings):
    return lambda *arguments, **more: process(*arguments, **{**settings, **more})


def snapshot(settings) -> Path:
    return Path(settings["HF_HOME"], "hub", "models--apple--FastVLM-tiny", "snapshots", COMMIT)


def listed(command) -> dict:
    return {model["name"]: model for model in json.loads(command("ls", "--json").out)["models"]}


def needed(repository) -> set[str]:
    own = {path.name for path in repository.iterdir() if path.is_file()}
    return own - {"llava_qwen.py", "accuracy.png", "pytorch_model.bin"}


def test_a_pulled_model_is_listed_opens_offline_and_is_removed(command, hub, settings, repository, image):
    planned = json.loads(command("pull", NAME, "--dry-run", "--json").out)
    assert hub.downloads() == []
    assert {file["name"] for file in planned["files"]} == needed(repository)
    assert planned["license"] == "other apple-amlr"
    assert (
        planned["bytes_to_download"]
        == planned["bytes"]
        == sum((repository / name).stat().st_size for name in needed(repository))
    )
    pulled = command("pull", NAME, HF_TOKEN="hf_secret")
    assert hub.signed_in == {"127.0.0.1"}  # the token is for the Hub, not for the host of the files
    folder = Path(pulled.out.strip())
    assert folder == snapshot(settings)
    assert {path.name for path in folder.iterdir()} == needed(repository)
    assert "license: other apple-amlr; text in LICENSE. See https://huggingface.co/apple/FastVLM-tiny" in pulled.err

    count = len(hub.downloads())
    again = json.loads(command("pull", NAME, "--revision", "main", "--json", "-q").out)
    assert again["bytes_to_download"] == 0 and len(hub.downloads()) == count
    model = listed(command)[NAME]
    assert (model["place"], model["revision"], model["commit"]) == ("cache", "main", COMMIT)
    assert (model["layout"], model["bits"], model["image_size_px"]) == ("fast_vlm", 32, [128, 128])
    assert (model["license"], model["is_complete"]) == ("other apple-amlr", True)
    asked = command("ask", image, "?", "-m", NAME, HF_HUB_OFFLINE="1")
    assert asked.out.startswith("Grüße!"), asked.err

    assert "Add --yes" in command("rm", NAME).error and folder.is_dir()
    removed = command("rm", NAME, "--yes")
    assert (removed.code, removed.err) == (0, "")
    assert not snapshot(settings).parent.parent.exists() and NAME not in listed(command)


def test_a_copy_for_another_machine_has_plain_files_and_checksums(command, workplace, repository, image, settings):
    target = workplace / "tiny"
    assert command("pull", NAME, target, "--revision", "v1").out.strip() == str(target)
    assert {path.name for path in target.iterdir()} == {*needed(repository), "SHA256SUMS"}
    assert not any(path.is_symlink() for path in target.iterdir())
    home = Path(settings["FASTVLM_HOME"], "models")
    home.mkdir(parents=True)
    target.rename(home / "tiny")
    assert command("info", "tiny", "--verify", HF_HUB_OFFLINE="1").code == 0
    assert listed(command)["tiny"]["place"] == "folder"
    assert command("ask", image, "?", "-m", "tiny", HF_HUB_OFFLINE="1").out.startswith("Grüße!")


def test_a_broken_connection_is_resumed(command, hub, repository):
    (repository / WEIGHTS).write_bytes(os.urandom(25 << 20))  # the client writes pieces of 10 MiB
    hub.breaks = 1
    folder = Path(command("pull", NAME).out.strip())
    assert (folder / WEIGHTS).read_bytes() == (repository / WEIGHTS).read_bytes()
    assert hub.requests_of(f"/cdn/{WEIGHTS}") == [None, f"bytes={10 << 20}-"]


def test_a_connection_that_is_silent_is_opened_again(command, hub, repository):
    (repository / WEIGHTS).write_bytes(os.urandom(25 << 20))
    hub.stalls = 1
    assert command("pull", NAME, HF_HUB_DOWNLOAD_TIMEOUT="1").code == 0
    assert hub.requests_of(f"/cdn/{WEIGHTS}") == [None, f"bytes={10 << 20}-"]


def test_damaged_weights_are_noticed_and_do_not_stay(command, hub, settings):
    hub.damaged = True
    assert "arrived damaged: its SHA-256 is" in command("pull", NAME, "-q").error
    assert not (snapshot(settings) / WEIGHTS).exists()
    assert listed(command)[NAME]["missing"] == "the weights are missing"
    hub.damaged = False
    assert command("pull", NAME).code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_what_to_do(command, hub, status):
    hub.gated = status
    error = command("pull", NAME, "-q").error
    assert error.startswith("'apple/FastVLM-tiny' is gated: accept its terms on https://huggingface.co/apple/FastVLM-")
    assert "hf auth login" in error


def test_a_proxy_is_used(command, hub, settings, repository):
    """The server is the proxy here; the Hub's name does not exist."""
    proxy = {"HTTP_PROXY": hub.url, "http_proxy": hub.url, "NO_PROXY": "", "no_proxy": ""}
    folder = Path(command("pull", NAME, HF_ENDPOINT="http://hub.invalid", **proxy).out.strip())
    assert {path.name for path in folder.iterdir()} == needed(repository)


def test_what_is_not_there_is_one_line(command, hub, workplace, settings):
    assert "no Hub repository 'apple/other'" in command("pull", "apple/other").error
    assert "no such revision: 'v9'" in command("pull", NAME, "--revision", "v9").error
    assert "not in the local cache" in command("pull", NAME, HF_HUB_OFFLINE="1").error
    assert "expected owner/repository" in command("pull", "tiny").error
    hub.status = 500
    assert "failed: Server error '500" in command("pull", NAME).error
    assert not Path(settings["HF_HOME"], "hub").exists()


def test_another_model_is_refused_before_its_weights(command, hub, repository, settings):
    (repository / "config.json").write_text('{"model_type": "llama"}')
    assert "'apple/FastVLM-tiny' is no FastVLM" in command("pull", NAME, "-q").error
    assert hub.downloads(WEIGHTS) == []
    assert "is not a FastVLM, so it is not removed" in command("rm", NAME, "--yes").error
    (repository / "config.json").unlink()
    assert "holds no checkpoint" in command("pull", NAME, "-q").error


def test_ctrl_c_ends_at_once_and_the_next_pull_continues(command, hub, settings, repository, image):
    (repository / WEIGHTS).write_bytes(os.urandom(25 << 20))
    hub.stalls = 1
    started = subprocess.Popen(
        [sys.executable, "-m", "fastvlm", "pull", NAME, "-q"],
        env={**plain_environment(), **settings},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509
    )
    blobs = snapshot(settings).parents[1] / "blobs"
    while not any(part.stat().st_size >= 10 << 20 for part in blobs.glob("*.incomplete")):
        assert started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, error = started.communicate(timeout=60)
    assert (started.returncode, error) == (130, "fastvlm: stopped: by Ctrl-C.\n")
    assert listed(command)[NAME]["missing"] == "the weights are missing"
    assert "not in the local cache" in command("ask", image, "?", "-m", NAME, HF_HUB_OFFLINE="1").error
    configs = len(hub.downloads("config.json"))
    folder = Path(command("pull", NAME).out.strip())
    assert len(hub.downloads("config.json")) == configs  # what had arrived is not fetched again
    assert hub.requests_of(f"/cdn/{WEIGHTS}")[-1] == f"bytes={10 << 20}-"
    assert (folder / WEIGHTS).read_bytes() == (repository / WEIGHTS).read_bytes()
    assert list(blobs.glob("*.incomplete")) == []


def test_two_pulls_at_once_both_succeed(hub, settings, workplace, repository):
    hub.delay_s = 0.02
    environment = {**plain_environment(), **settings}
    words = [sys.executable, "-m", "fastvlm", "pull", NAME, "-q"]
    both = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=300)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert paths == {str(snapshot(settings))}
    assert (snapshot(settings) / WEIGHTS).read_bytes() == (repository / WEIGHTS).read_bytes()


def test_a_full_disk_is_said_before_the_download(hub, settings, workplace):
    code = (
        "import shutil, sys; from fastvlm.cli.main import main; real = shutil.disk_usage; "
        "shutil.disk_usage = lambda path: real(path)._replace(free=1000); "
        f"sys.exit(main(['pull', {NAME!r}]))"
    )
    environment = {**plain_environment(), **settings}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "apple/FastVLM-tiny needs" in done.stderr and "1.0 KB are free" in done.stderr
    assert hub.downloads() == []


def test_a_disk_that_is_full_or_read_only_is_one_line(hub, settings, workplace, repository, tmp_path):
    """A limit on the size of files stands for a disk that fills during the download."""
    (repository / WEIGHTS).write_bytes(os.urandom(25 << 20))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20)); "
    code = limit + f"import sys; from fastvlm.cli.main import main; sys.exit(main(['pull', {NAME!r}, '-q']))"
    environment = {**plain_environment(), **settings}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "hub cannot be written: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "fastvlm", "pull", NAME, "-q"]
    environment["HF_HOME"] = str(tmp_path / "file")
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "A part of that path is a file" in done.stderr


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home/models"
    folder.mkdir(parents=True)
    return folder


def test_only_models_are_removed(fastvlm, models, parrot_folder, tmp_path):
    shutil.copytree(parrot_folder, models / "mine")
    shutil.copytree(parrot_folder, models / "someone/theirs")
    (models / "someone/theirs/holiday.jpg").touch()
    (models / "linked").symlink_to(parrot_folder)
    (models / "bert").mkdir()
    (models / "bert/config.json").write_text('{"model_type": "bert"}')
    assert "holds files that are not a model's (holiday.jpg)" in fastvlm("rm", "someone/theirs", "--yes").error
    assert "is not the folder of a FastVLM" in fastvlm("rm", "bert", "--yes").error
    assert "is a path" in fastvlm("rm", parrot_folder, "--yes").error
    assert "part of the package" in fastvlm("rm", "mini", "--yes").error
    assert "There is no model 'none'" in fastvlm("rm", "mine", "none", "--yes").error
    assert (models / "mine").is_dir()  # nothing was removed, because one of the names is wrong
    assert fastvlm("rm", "mine", "linked", "--yes").code == 0
    assert sorted(path.name for path in models.iterdir()) == ["bert", "someone"]
    assert (parrot_folder / "config.json").is_file()


@pytest.mark.parametrize(("reply", "is_kept"), [("n", True), ("", True), ("y", False)])
def test_removing_asks_on_a_terminal(models, parrot_folder, workplace, reply, is_kept):
    shutil.copytree(parrot_folder, models / "mine")
    parent, child = pty.openpty()
    os.write(parent, f"{reply}\n".encode())
    words = [sys.executable, "-m", "fastvlm", "rm", "mine"]
    done = subprocess.run(words, stdin=child, capture_output=True, text=True, env=plain_environment(), check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Remove mine (" in done.stderr and f"in {models / 'mine'})? [y/N]" in done.stderr
    assert (models / "mine").is_dir() is is_kept
    for end in (parent, child):
        os.close(end)


def test_one_revision_of_two_is_removed(fastvlm, tmp_path, monkeypatch, parrot_folder):
    """In a cache as huggingface_hub writes it; weights that both commits have stay."""
    repository = tmp_path / "hub/models--owner--tiny"
    for commit, name in (("1" * 40, "v1"), ("2" * 40, "main")):
        shutil.copytree(parrot_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    rows = [model["revision"] for model in json.loads(fastvlm("ls", "--json").out)["models"]]
    assert rows[-2:] == ["v1", "main"]
    assert "no model 'owner/tiny' at revision 'v3'" in fastvlm("rm", "owner/tiny", "--revision", "v3", "--yes").error
    assert fastvlm("rm", "owner/tiny", "--revision", "v1", "--yes").code == 0
    assert [path.name for path in (repository / "snapshots").iterdir()] == ["2" * 40]


def test_a_model_of_the_folder_opens_by_its_name(fastvlm, models, parrot_folder, workplace):
    shutil.copytree(parrot_folder, models / "owner/mine")
    assert json.loads(fastvlm("info", "owner/mine", "--json").out)["path"] == str(models / "owner/mine")
    assert f"also not in {models}" in fastvlm("info", "other").error
    assert "also not in" in fastvlm("info", "../home/models/owner/mine/x").error


def test_the_list_shows_bits_and_what_is_missing(fastvlm, models, parrot_folder, monkeypatch):
    shutil.copytree(parrot_folder, models / "half")
    (models / "half/model.safetensors").unlink()
    (models / "empty").mkdir()
    assert fastvlm("quantize", parrot_folder, models / "small", "--bits", "4", "-q").code == 0
    rows = {line.split()[0]: line for line in fastvlm("ls").out.splitlines()}
    assert set(rows) == {"NAME", "mini", "half", "small"}
    assert rows["half"].endswith("folder, incomplete")
    assert rows["small"].split()[4:6] == ["4", "128"]
    assert "apache-2.0" in rows["mini"] and "not stated" in rows["small"]


def test_the_list_needs_no_torch(workplace, tmp_path):
    heavy = ("torch", "transformers")
    code = (
        f"import sys; from fastvlm.cli.main import main; main(['ls']); print([n for n in {heavy} if n in sys.modules])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "FASTVLM_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_checksums_of_the_copy_are_sha256(command, workplace, repository):
    target = workplace / "tiny"
    command("pull", NAME, target)
    lines = dict(reversed(line.split("  ")) for line in (target / "SHA256SUMS").read_text().splitlines())
    assert lines[WEIGHTS] == hashlib.sha256((repository / WEIGHTS).read_bytes()).hexdigest()
    assert "exists already" in command("pull", NAME, target).error
    shutil.rmtree(target)


def test_a_name_that_is_not_here_is_downloaded_with_the_same_files(command, hub, settings, repository):
    assert command("info", NAME, "--json").code == 0
    assert {path.name for path in snapshot(settings).iterdir()} == needed(repository)
