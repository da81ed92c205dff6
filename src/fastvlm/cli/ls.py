"""`fastvlm ls`: the models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from fastvlm.cli.options import DebugOption, JsonOption
from fastvlm.cli.terminal import in_bytes, print_json, printable, quiet_warnings

if TYPE_CHECKING:
    from fastvlm.formats.model_list import ListedModel

_TITLES = ("NAME", "REVISION", "LAYOUT", "SIZE", "BITS", "IMAGES", "LICENSE", "PLACE")
_LICENSE_WIDTH = 28


def ls(is_json: JsonOption = False, is_debug: DebugOption = False) -> None:
    """List the models on this machine.

    The shipped one, those in the models folder ($FASTVLM_HOME/models), and those in the Hub's cache (HF_HOME), each by
    the name that --model takes: layout, size, bits of the decoder's weights, image size in pixels, license as the
    model's files state it. A model whose download was interrupted is marked incomplete; fastvlm pull completes it.

    \b
    Examples:
      fastvlm ls
      fastvlm ls --json | jq -r '.models[] | select(.is_complete) | .path'
    """
    quiet_warnings(is_quiet=False, is_debug=is_debug)
    from fastvlm.formats.model_list import list_models
    from fastvlm.formats.models_folder import models_folder

    models = list(list_models())
    if is_json:
        from huggingface_hub.constants import HF_HUB_CACHE

        places = {"models_folder": str(models_folder()), "cache": HF_HUB_CACHE}
        print_json({"models": [_as_dict(model) for model in models], **places})
        return
    for line in _table([_TITLES, *map(_row, models)]):
        typer.echo(printable(line))


def _as_dict(model: ListedModel) -> dict[str, Any]:
    about = asdict(model.summary)
    missing = about.pop("missing")
    names = {"name": model.name, "place": model.place, "revision": model.revision, "commit": model.commit}
    return {**names, **about, "is_complete": missing is None, "missing": missing, "path": str(model.path)}


def _row(model: ListedModel) -> tuple[str, ...]:
    about = model.summary
    size = about.image_size_px
    sides = "?" if size is None else str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
    revision = model.revision or ""
    license_name = about.license or "not stated"
    return (
        model.name,
        revision[:12] if revision == model.commit else revision,
        about.layout,
        in_bytes(about.num_bytes),
        "?" if about.bits is None else str(about.bits),
        sides,
        license_name if len(license_name) <= _LICENSE_WIDTH else f"{license_name[: _LICENSE_WIDTH - 3]}...",
        model.place if about.missing is None else f"{model.place}, incomplete",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines; an empty column is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in zip(*columns, strict=True))
    return [line.rstrip() for line in lines]
