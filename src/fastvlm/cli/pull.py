"""`fastvlm pull`: download a checkpoint from the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastvlm.cli.leaving import leaving_cleanly
from fastvlm.cli.options import DebugOption, JsonOption, QuietOption, RevisionOption
from fastvlm.cli.terminal import Notes, in_bytes, print_json, printable, quiet_warnings, say
from fastvlm.errors import StorageError, UsageError

if TYPE_CHECKING:
    from fastvlm.hub.download import Download


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A Hub name: owner/repository.")],
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A folder that does not exist yet, for a copy to take elsewhere."),
    ] = None,
    revision: RevisionOption = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files, their sizes and the license; download nothing.")
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Download a checkpoint from the Hugging Face Hub.

    Files and sizes are listed first. Only configuration, tokenizer, license, card and weights are downloaded, never
    code, to the cache that transformers uses too (HF_HOME, HF_HUB_CACHE). A broken connection is resumed; after an
    interruption, the same command continues. The SHA-256 of each weight file is compared with the Hub's. With TARGET,
    the files are also copied to a folder of their own, with a SHA256SUMS. The path is printed.

    \b
    Examples:
      fastvlm pull apple/FastVLM-0.5B
      fastvlm pull apple/FastVLM-0.5B --dry-run
      fastvlm pull apple/FastVLM-1.5B ./fastvlm-1.5b --revision main
    """
    notes = Notes(is_quiet=is_quiet)
    quiet_warnings(is_quiet=is_quiet, is_debug=is_debug)
    from fastvlm.formats.places import SHIPPED, new_folder
    from fastvlm.formats.source import REPOSITORY, download_checkpoint, hub_folder
    from fastvlm.hub.download import find_download

    if name == SHIPPED:
        raise UsageError("'mini' comes with the package, so there is nothing to download.")
    if not REPOSITORY.fullmatch(name):
        raise UsageError(f"{name!r} is no Hub name; expected owner/repository, as in apple/FastVLM-0.5B.")
    new = None if target is None else new_folder(target)
    with notes.waiting(f"Asking the Hub for {name}"):
        download = find_download(name, revision)
    if is_dry_run:
        _print_plan(download, is_json=is_json)
        return
    notes.say("\n".join(_plan(download)))
    if not is_quiet:
        say("license", _license(download))
    _check_space(download, new)
    with leaving_cleanly():
        given = {} if revision is None else {"revision": revision}
        with _progress(notes, name) as progress:
            download_checkpoint(name, revision, download, progress)
        folder = hub_folder(name, **given)  # all is there: this notes which commit the revision stands for
        if new is not None:
            with notes.waiting(f"Copying to {new}"):
                folder = _copy(download, folder, new)
    if is_json:
        print_json({**_as_dict(download), "path": str(folder)})
    else:
        typer.echo(str(folder))


@contextmanager
def _progress(notes: Notes, name: str) -> Iterator[Callable[[int, int], None]]:
    """One bar for all files, with bytes, speed and time; the Hub's client would show one a file."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    disable_progress_bars()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with notes.bars(*columns, TimeRemainingColumn()) as bars:
        task = bars.add_task(printable(name), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _check_space(download: Download, target: Path | None) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = [(Path(HF_HUB_CACHE), download.missing_bytes)]
    if target is not None:
        wanted.append((target.parent, download.num_bytes))
    needed: dict[int, int] = {}  # by disk, because cache and copy may lie on the same one
    for folder, num_bytes in wanted:
        place = next(each for each in (folder, *folder.parents) if each.exists())
        device = place.stat().st_dev
        needed[device] = needed.get(device, 0) + num_bytes
        free = shutil.disk_usage(place).free
        if needed[device] > free:
            raise StorageError(
                f"{download.repository} needs {in_bytes(needed[device])} on the disk of {folder}, and {in_bytes(free)} "
                "are free. Free some space, or name a place on another disk: HF_HOME for the cache, TARGET for a copy."
            )


def _copy(download: Download, folder: Path, target: Path) -> Path:
    from fastvlm.formats.checksums import CHECKSUM_FILE, write_checksums
    from fastvlm.storage.whole_folders import whole_folder

    with whole_folder(target) as work:
        for file in download.files:
            shutil.copyfile(folder / file.name, work / file.name)
        if not (work / CHECKSUM_FILE).is_file():
            write_checksums(work)
    return target


def _print_plan(download: Download, *, is_json: bool) -> None:
    if is_json:
        print_json(_as_dict(download))
        return
    for line in (*_plan(download), f"license: {_license(download)}"):
        typer.echo(printable(line))


def _plan(download: Download) -> list[str]:
    """Lines: the repository with its commit, each file with its size, the sum."""
    width = max(len(file.name) for file in download.files)
    files = (
        f"  {file.name:<{width}}  {in_bytes(file.num_bytes):>8}{'  in the cache' if file.is_cached else ''}"
        for file in download.files
    )
    total = f"  {in_bytes(download.num_bytes)}, of which {in_bytes(download.missing_bytes)} to download"
    return [f"{download.repository} at {download.commit}", *files, total]


def _license(download: Download) -> str:
    page = f"https://huggingface.co/{download.repository}"
    texts = [file.name for file in download.files if file.name.startswith("LICENSE")]
    stated = "the card states none" if download.license is None else download.license
    link = "" if download.license_link is None else f", {download.license_link}"
    return f"{stated}{link}{''.join(f'; text in {name}' for name in texts)}. See {page}"


def _as_dict(download: Download) -> dict[str, Any]:
    return {
        "model": download.repository,
        "revision": download.revision,
        "commit": download.commit,
        "license": download.license,
        "license_link": download.license_link,
        "bytes": download.num_bytes,
        "bytes_to_download": download.missing_bytes,
        "files": [
            {"name": file.name, "bytes": file.num_bytes, "sha256": file.sha256, "is_cached": file.is_cached}
            for file in download.files
        ],
    }
