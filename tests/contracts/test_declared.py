"""Every distribution whose modules a source imports is declared in that source's pyproject.toml, with its reason."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# Distribution -> pyproject.toml, folder of the sources.
SOURCES = {
    "fastvlm": (ROOT / "pyproject.toml", ROOT / "src"),
    "fastvlm-recipes": (ROOT / "recipes/pyproject.toml", ROOT / "recipes/src"),
}


def imported_modules(folder: Path) -> dict[str, str]:
    """Top-level module -> a file that imports it, at the top or within a function."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return found


def declared(pyproject: Path) -> set[str]:
    """Distributions of the dependencies and of the extras, as PEP 503 spells their names."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirements in lists for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_is_declared(name):
    pyproject, folder = SOURCES[name]
    known, of_module = declared(pyproject), packages_distributions()
    own = {path.name for path in folder.iterdir()}
    missing = {}
    for module, file in imported_modules(folder).items():
        if module in sys.stdlib_module_names or module in own:
            continue
        distributions = {normal(one) for one in of_module.get(module, [module])}
        if not distributions & known:
            missing[module] = (file, distributions)
    assert not missing


@pytest.mark.parametrize("name", SOURCES)
def test_each_requirement_has_its_reason_next_to_it(name):
    lines = SOURCES[name][0].read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if re.match(r'  "[\w.-]+[<>=\[;].*",', line)]
    assert len(requirements) > 5
    assert [line for line in requirements if "  #" not in line] == []
