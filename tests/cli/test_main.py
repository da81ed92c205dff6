"""The command starts without heavy imports; its help is complete, and the same on every terminal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_process import plain_environment

import fastvlm as package
from fastvlm.cli.main import app
from fastvlm.cli.other_verbs import OTHER_VERBS

VERBS = ("ask", "chat", "info", "convert", "quantize")
HEAVY = ("torch", "transformers", "huggingface_hub", "PIL", "httpx", "numpy")
LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=plain_environment(), capture_output=True, check=True)
    return done.stdout.decode()


def test_nothing_heavy_is_loaded_for_talk():
    lines = [["--help"], ["--version"], [], ["ask", "--help"], ["ask", "--foo"], ["chat", "-h"]]
    out = python(f"from fastvlm.cli.main import main\nfor line in {lines}: main(line)\n{LOADED}")
    assert out.splitlines()[-1] == "[]"


def test_importing_the_package_loads_nothing_heavy():
    assert python(f"import fastvlm; {LOADED}") == "[]\n"


def test_help_imports_few_modules():
    """What it takes is the time of its imports: about 270 modules, a third of a second on a slow machine."""
    code = "import sys; from fastvlm.cli.main import main; main(['--help']); print(len(sys.modules))"
    assert int(python(code).splitlines()[-1]) < 400


def test_without_arguments_there_is_help(fastvlm):
    outcome = fastvlm()
    assert outcome == fastvlm("--help") == fastvlm("-h")
    assert outcome.code == 0 and outcome.err == ""
    for verb in VERBS:
        assert re.search(rf"^  {verb} +[A-Z]", outcome.out, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_examples_that_name_only_what_exists(fastvlm, verb):
    page = fastvlm(verb, "--help").out
    usage, _, rest = page.partition("\n")
    assert usage.startswith(f"Usage: fastvlm {verb} [OPTIONS] ")
    examples = rest.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) >= 2
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest.partition("Options:\n")[2]))
    for line in examples:
        assert "fastvlm " + verb in line
        for flag in re.findall(r" (--?[a-z][a-z-]*)", line.partition("fastvlm ")[2].partition("|")[0]):
            assert flag in flags, f"{line}: {flag} does not exist"


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_pages_fit_eighty_columns_except_examples(fastvlm, verb):
    page = fastvlm(*([verb] if verb else []), "--help").out
    long = [line for line in page.splitlines() if len(line) > 80 and "fastvlm" not in line]
    assert long == []


def test_the_version(fastvlm):
    assert fastvlm("--version").out == f"fastvlm {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aks"], "No such command 'aks'. Did you mean 'ask'? Try: fastvlm --help"),
        (["ask", "--modle", "x", "q"], "No such option: --modle"),
        (["--foo"], "No such option: --foo"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["convert", "a"], "TARGET"),
        (["ask", "q", "--model"], "'--model' requires an argument"),
    ],
)
def test_typing_mistakes_are_one_line_and_exit_code_two(fastvlm, arguments, words):
    outcome = fastvlm(*arguments)
    assert outcome.code == 2 and words in outcome.error and outcome.out == ""
    assert outcome.error.endswith("--help")


@pytest.mark.parametrize(
    ("verb", "words"),
    [("run", "fastvlm ask IMAGE"), ("generate", "fastvlm ask"), ("list", "fastvlm ls"), ("show", "fastvlm info"),
     ("describe", "What do you see?"), ("help", "fastvlm --help")],
)  # fmt: skip
def test_verbs_of_other_programs_name_ours(fastvlm, verb, words):
    outcome = fastvlm(verb, "mini")
    assert outcome.code == 2 and outcome.error.startswith(f"There is no fastvlm {verb}. ") and words in outcome.error


def test_no_hint_hides_a_verb_or_names_one_that_does_not_exist():
    verbs = set(typer.main.get_command(app).commands)
    assert not verbs & set(OTHER_VERBS)
    assert {verb for hint in OTHER_VERBS.values() for verb in re.findall(r"fastvlm ([a-z]+)", hint)} <= verbs


def test_bash_completes_verbs_and_flags(tmp_path):
    """The script that --show-completion prints, run by bash as on the Tab key."""
    script = f"""
        export PATH={Path(sys.executable).parent}:$PATH SHELL=/bin/bash
        eval "$(fastvlm --show-completion)"
        complete -p fastvlm
        COMP_WORDS=(fastvlm as) COMP_CWORD=1; _fastvlm_completion fastvlm; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(fastvlm ask --image-s) COMP_CWORD=2; _fastvlm_completion fastvlm; echo "${{COMPREPLY[@]}}"
        fastvlm --install-completion
    """
    environment = {**plain_environment(), "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:3] == [
        "complete -o default -F _fastvlm_completion fastvlm",
        "ask",
        "--image-size",
    ]
    assert "_fastvlm_completion" in (tmp_path / ".bash_completions" / "fastvlm.sh").read_text()


def test_flags_of_version_0_1_are_understood(workplace):
    outcome = subprocess.run(
        [sys.executable, "-m", "fastvlm", "serve", "--max-pictures=-1", "--model", "nowhere"],
        env=plain_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "max_images is -1" in outcome.stderr


def test_a_verb_of_a_distribution_that_is_not_installed_says_how_to_install_it(fastvlm, monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    outcome = fastvlm("demo-data", "out")
    assert outcome.code == 1 and outcome.out == "" and outcome.err.count("\n") == 1
    assert outcome.err.endswith("In a checkout of the repository run: pip install ./recipes\n")


def test_other_distributions_are_looked_at_only_for_an_unknown_verb(fastvlm, monkeypatch):
    looked = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: looked.append(wanted) or ())
    assert fastvlm("--help").code == fastvlm("info", "mini").code == 0 and looked == []
    assert fastvlm("aks").code == 2 and looked == [{"group": "fastvlm.verbs", "name": "aks"}]
