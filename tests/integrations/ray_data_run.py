"""Captioning on a local Ray cluster, in an environment that has Ray: ``python ray_data_run.py FOLDER``.

FOLDER has `photos`, 40 images of which two are broken. Prints one JSON object with what was found.
"""

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import ray

from fastvlm.captioning import CaptionSettings, Prompt
from fastvlm.cli.main import main as run_command
from fastvlm.errors import DataError, UsageError
from fastvlm.integrations.ray_data import Cluster, caption_dataset, caption_on_cluster

PROMPTS = [Prompt("What shape is this?"), Prompt("What color is it?")]
ENGINE = {"sampling": {"max_new_tokens": 12}, "num_slots": 4, "num_decoders": 1}


def actor_processes() -> list[int]:
    """Process ids of this machine's actors that caption."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if title.startswith("ray::") and "SplitCaptioner" in title and parent:
            found.append(int(folder.name))
    return found


def kill_one(out: Path, killed: list[int]) -> None:
    """Kill an actor once there are answers in its journal."""
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and not killed:
        if list(out.glob("*.journal")):
            for process in actor_processes()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
        time.sleep(0.02)


def main(folder: Path) -> None:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    photos, out, found = str(folder / "photos"), folder / "out", {}
    cluster = Cluster(num_actors=2, cpus=1.0, num_splits=4)
    settings = CaptionSettings(rows_per_part=5)
    killed: list[int] = []
    thread = threading.Thread(target=kill_one, args=(out, killed), daemon=True)
    thread.start()
    summary = caption_on_cluster([photos], out, PROMPTS, settings, ENGINE, cluster)
    found["killed"], found["cores"] = len(killed), summary.cores
    command = ["caption", photos, "--out", str(out), "--rows-per-part", "5", "-n", "12", "--json", "-q"]
    command += [word for prompt in PROMPTS for word in ("-p", prompt.text)]
    with redirect_stdout(io.StringIO()) as printed:
        found["code"] = run_command([*command, "--ray", "local", "--ray-actors", "2", "--ray-splits", "4"])
    again = json.loads(printed.getvalue())
    found["again"] = [again["images"], again["kept"]]
    try:
        caption_on_cluster([photos], folder / "other", PROMPTS, settings, ENGINE, Cluster(num_actors=4, cpus=1.0))
    except UsageError as error:
        found["too_many"] = str(error)
    try:
        caption_on_cluster([photos], out, PROMPTS[:1], settings, ENGINE, cluster)
    except DataError as error:
        found["other_run"] = str(error)
    dataset = ray.data.read_binary_files(photos, include_paths=True)
    rows = caption_dataset(
        dataset, PROMPTS, ENGINE, num_actors=1, batch_size=16, image_column="bytes", id_column="path"
    ).take_all()
    found["rows"] = [[Path(row["id"]).name, row["prompt"], row["text"], row["error"]] for row in rows]
    print("FOUND", json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
