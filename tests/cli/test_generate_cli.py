"""docs/cli.md is what the command says about itself."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_not_drifted():
    made = generator()
    assert made.PAGE == DOCS / "cli.md"
    assert made.PAGE.read_text(encoding="utf-8") == made.render(), "run: python docs/generate_cli.py"
    assert made.main(["--check"]) == 0


def test_a_drifted_page_is_noticed(tmp_path):
    made = generator()
    made.PAGE = tmp_path / "cli.md"
    made.PAGE.write_text(made.render().replace("--image-size", "--size"), encoding="utf-8")
    assert made.main(["--check"]) == 1
    made.main([])
    assert made.main(["--check"]) == 0


def test_the_documented_json_keys_are_those_of_a_reply():
    from fastvlm.cli.reply import Reply
    from fastvlm.engine.types import Completion, Timings, Usage

    page = generator().render()
    completion = Completion(1, "x", (0,), "stop", Usage(1, 0, 1), Timings(1.0, 0.0, 1.0, 1.0, None, 1.0), None)
    reply = Reply(completion, load_ms=1.0, opening_ms=1.0).as_dict()
    for key in (*reply, *reply["usage"], *reply["timings_ms"], "model"):
        assert f"`{key}`" in page or (key == "load" and "`load`" in page), key
