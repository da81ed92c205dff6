"""The static page of ``fastvlm export --to onnx --page``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fastvlm
from fastvlm.errors import UsageError

_FILES = ("index.html", "page.js", "page.css")
_SHARED = ("style.css", "icon.svg")  # of the server's page
# What the page loads from a CDN unless it is copied: the bundle of transformers.js, and the runtime in WebAssembly.
_LIBRARY = (
    "@huggingface/transformers/dist/transformers.min.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
_VENDOR = "vendor"


def library_files(modules: Path) -> list[Path]:
    """The files of transformers.js in a ``node_modules`` folder; raises UsageError if one is missing."""
    files = [modules / name for name in _LIBRARY]
    if missing := [file for file in files if not file.is_file()]:
        raise UsageError(
            f"{missing[0]} is missing. Get it: npm install --ignore-scripts @huggingface/transformers@4.3.2; then name "
            "the folder node_modules."
        )
    return files


def write_page(folder: Path, modules: Path | None) -> None:
    """Copy the page into `folder`, where the model's files are.

    Args:
        folder: of the export.
        modules: a ``node_modules`` folder with transformers.js, which is copied too; None to load it from a CDN.
    """
    package = Path(fastvlm.__file__).parent
    for name in _FILES:
        shutil.copyfile(package / "export" / "page" / name, folder / name)
    for name in _SHARED:
        shutil.copyfile(package / "web" / "page" / name, folder / name)
    settings = {"vendor": "" if modules is None else f"{_VENDOR}/"}
    (folder / "page.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    if modules is not None:
        (folder / _VENDOR).mkdir()
        for file in library_files(modules):
            shutil.copyfile(file, folder / _VENDOR / file.name)
