"""Names -> folders: the Hub's cache as it lies on disk, and what the Hub's refusals become."""

import shutil

import apple_layout
import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import fastvlm
from fastvlm.errors import CheckpointError
from fastvlm.formats.source import local_folder

OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path):
    """A Hub cache with two commits of one repository: `main` is the newer, tag `v1` the older."""
    repository = tmp_path / "cache/models--someone--FastVLM-tiny"
    for commit, hidden in ((OLD, 32), (NEW, 64)):
        model = apple_layout.tokenized_model(text={"hidden_size": hidden})
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        apple_layout.write_apple_folder(repository / "snapshots" / commit, model)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(NEW)
    (repository / "refs/v1").write_text(OLD)
    return tmp_path / "cache"


@pytest.mark.parametrize(("revision", "hidden"), [(None, 64), ("main", 64), ("v1", 32), (OLD, 32)])
def test_a_cached_repository_opens_offline_at_the_revision_asked_for(cache, revision, hidden):
    model, processor = fastvlm.load("someone/FastVLM-tiny", revision=revision, cache_dir=cache, local_files_only=True)
    assert model.config.text_config.hidden_size == hidden
    assert model.config.name_or_path == "someone/FastVLM-tiny"
    assert processor.image_processor.image_size == (128, 128)


def test_what_is_not_cached_is_one_clear_error(cache):
    for name, revision in (("someone/else", None), ("someone/FastVLM-tiny", "v2")):
        with pytest.raises(CheckpointError, match=r"not in the local cache.*Connect once"):
            local_folder(name, revision=revision, cache_dir=cache)


def _response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("no", response=_response(403)), r"is gated: accept its terms"),
        (RepositoryNotFoundError("no", response=_response(404)), "no Hub repository 'a/b' at revision 'x'"),
        (RevisionNotFoundError("no", response=_response(404)), "no such revision: 'x'"),
        (LocalEntryNotFoundError("no"), "not in the local cache"),
        (OfflineModeIsEnabled("no"), "not in the local cache"),
        (HfHubHTTPError("server on fire", response=_response(500)), "failed: server on fire"),
        (OSError("disk full"), "failed: disk full"),
    ],
)
def test_refusals_of_the_hub_become_one_line(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message):
        local_folder("a/b", revision="x")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_only_the_files_needed_are_asked_for_and_never_code(monkeypatch, tmp_path, suffix):
    asked = []

    def fetch(repository, *, allow_patterns, ignore_patterns, **_):
        asked.extend(allow_patterns)
        assert ignore_patterns == ["*/*"]
        target = tmp_path / "snapshot"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in ("model.safetensors",) if suffix == "safetensors" else ():
            (target / name).touch()
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert local_folder("a/b") == tmp_path / "snapshot"
    assert ("*.bin" in asked) is (suffix == "bin")
    assert not any(pattern.endswith((".py", "*")) and not pattern.startswith("LICENSE") for pattern in asked)
