"""Rendering the Helm chart: by Helm, or by ``deploy/chart/render.go`` with the Go packages of Debian."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

CHART = Path(__file__).parents[1] / "deploy/helm/fastvlm"
_GO_PACKAGES = Path("/usr/share/gocode")
_RENDER = Path(__file__).parent / "deploy/chart/render.go"


@functools.cache
def _renderer() -> list[str] | None:
    """The command that renders, without its arguments; None if there is neither Helm nor Go."""
    if shutil.which("helm"):
        return ["helm", "template", "vlm", str(CHART), "--values"]
    if not (shutil.which("go") and (_GO_PACKAGES / "src/github.com/Masterminds/sprig").is_dir()):
        return None
    folder = tempfile.mkdtemp()
    settings = {"GO111MODULE": "off", "GOPATH": str(_GO_PACKAGES), "GOFLAGS": "", "GOCACHE": f"{folder}/cache"}
    program = f"{folder}/render"
    subprocess.run(["go", "build", "-o", program, str(_RENDER)], env=os.environ | settings, check=True)
    return [program, str(CHART), "vlm"]


def rendered(values: dict, folder: Path) -> subprocess.CompletedProcess:
    """The chart with these values, as text; the test is skipped where nothing can render it."""
    command = _renderer()
    if command is None:
        pytest.skip("needs Helm, or golang-go, golang-github-masterminds-sprig-dev and golang-gopkg-yaml.v3-dev")
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)


def objects(values: dict, folder: Path) -> dict[str, dict]:
    """Kind -> object of what the chart makes of these values."""
    run = rendered(values, folder)
    assert run.returncode == 0, run.stderr
    found = [one for one in yaml.safe_load_all(run.stdout) if one]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}
