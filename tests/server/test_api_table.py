"""The table of parameters in docs/serve.md is that of the schemas."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_is_the_one_of_today():
    spec = importlib.util.spec_from_file_location("generate_api_table", DOCS / "generate_api_table.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (DOCS / "serve.md").read_text(encoding="utf-8") == generator.page(), "python docs/generate_api_table.py"
