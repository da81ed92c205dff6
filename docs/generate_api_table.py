"""Writes the table of endpoints and parameters in docs/serve.md from the schemas that requests are checked with.

Run it after a change: python docs/generate_api_table.py
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fastvlm.server.ollama.generate import Options
from fastvlm.server.routes import API_ROUTES

PAGE = Path(__file__).with_name("serve.md")
BEGIN, END = "<!-- parameters: written by docs/generate_api_table.py -->\n", "<!-- end of parameters -->\n"
KINDS = {"Has no effect": "without effect", "Not supported": "refused"}


def table() -> str:
    """One row an endpoint."""
    lines = ["| endpoint | supported | without effect | refused |", "| --- | --- | --- | --- |"]
    for route in API_ROUTES:
        if route.read is None or route.request is None:
            continue
        names = _names(route.request)
        if "options" in route.request.model_fields:
            inner = _names(Options)
            names = {kind: [*names[kind], *(f"options.{name}" for name in inner[kind])] for kind in names}
            names["supported"].remove("options")
        cells = (", ".join(f"`{name}`" for name in names[kind]) for kind in ("supported", *KINDS.values()))
        lines.append(f"| `{route.path}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _names(schema: type[BaseModel]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {kind: [] for kind in ("supported", *KINDS.values())}
    for name, field in schema.model_fields.items():
        names[_kind(field)].append(field.alias or name)
    return names


def _kind(field: FieldInfo) -> str:
    text = (
        field.description or next((one.description for one in field.metadata if isinstance(one, FieldInfo)), "") or ""
    )
    return next((kind for words, kind in KINDS.items() if text.startswith(words)), "supported")


def page() -> str:
    """docs/serve.md with the table of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
