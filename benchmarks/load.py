"""Two servers under the load of somebody else's tool: `fastvlm serve`, and transformers' own `transformers serve`.

    make install peers
    python -m venv .venv-load && .venv-load/bin/pip install aiperf
    .venv/bin/pip install --target .venv-load/serving fastapi
    .venv/bin/python benchmarks/load.py --checkpoint random-0.5b --aiperf .venv-load/bin/aiperf \\
        --serving .venv-load/serving --peers .venv-peers

Both servers open the same checkpoint, one after the other, never at the same time. The checkpoint is made if it is not
there: the 0.5B's shapes, random weights, replies that do not end by themselves. NVIDIA's aiperf asks both the same
questions about the same synthetic pictures, every picture once, so that no cache is of use; it streams, and counts
tokens as the servers count them (`--use-server-token-count`). It ends with a table in Markdown; `--out` keeps every
figure that is in it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image, ImageDraw

from fastvlm import FastVlmConfig, FastVlmImageProcessor, FastVlmProcessor
from fastvlm.bench.random_checkpoint import make_checkpoint
from fastvlm.hf.loading import load_processor

START_S = 600
PROMPT = "Describe what you see, number {}."
# transformers' FastVLM needs timm and torchvision; where torchvision lacks its compiled half, an empty module takes the
# place of the registrations that fail, as in `fastvlm bench`, and Pillow decodes the pictures (as it does for fastvlm).
TRANSFORMERS = """
import sys
from fastvlm.bench.peers_folder import add_peers_folder, prepare_torchvision
add_peers_folder()
prepare_torchvision()
import io, numpy, torch, torchvision.io
from PIL import Image
if not torchvision.io.image._has_image_ops():
    def decode_image(data, **_):
        picture = Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB")
        return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()
    torchvision.io.decode_image = decode_image
from transformers.cli.transformers import main
main()
"""


def picture(number: int, side_px: int) -> bytes:
    """A JPEG of (side, side): shapes on a coarse pattern, others for each number."""
    chance = random.Random(number)  # noqa: S311 - no secret
    small = Image.frombytes("RGB", (16, 16), chance.randbytes(16 * 16 * 3))
    image = small.resize((side_px, side_px), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, size = (chance.randrange(side_px) for _ in range(3))
        draw.ellipse((x, y, x + size // 3 + 1, y + size // 4 + 1), fill=tuple(chance.randbytes(3)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_questions(file: Path, numbers: range, side_px: int) -> None:
    """aiperf's `single_turn` lines: a text and a picture each."""
    with file.open("w") as lines:
        for number in numbers:
            data = base64.b64encode(picture(number, side_px)).decode()
            line = {"text": PROMPT.format(number), "image": f"data:image/jpeg;base64,{data}"}
            lines.write(json.dumps(line) + "\n")


def at_side(checkpoint: Path, side_px: int) -> Path:
    """A folder beside `checkpoint` with its weights, as links, and a processor for pictures of that side."""
    folder = checkpoint.with_name(f"{checkpoint.name}-{side_px}px")
    if not folder.exists():
        config = FastVlmConfig.from_pretrained(checkpoint)
        tokenizer = load_processor(checkpoint, config).tokenizer
        FastVlmProcessor(FastVlmImageProcessor(image_size=side_px), tokenizer).save_pretrained(folder)
        for file in checkpoint.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())
    return folder


# ---------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command_of(server: str, asked: argparse.Namespace, port: int) -> tuple[list[str], dict[str, str], str]:
    """How a server is started, its environment, and the name of its model."""
    folder = str(at_side(asked.checkpoint, asked.side).resolve())
    kind, _, bits = server.partition("-int")
    if kind == "fastvlm":
        options = ["--model", folder, "--port", str(port), "--slots", str(max(asked.concurrency)), "--name", "model"]
        options += ["--dtype", asked.dtype, *(["--bits", bits] if bits else []), *asked.serve.split()]
        return [sys.executable, "-m", "fastvlm", "serve", *options], {}, "model"
    options = ["serve", folder, "--port", str(port), "--host", "127.0.0.1", "--dtype", asked.dtype]
    # No --continuous-batching: for models with pictures it falls back to one reply after the other (transformers 5.23).
    paths = [str(asked.serving.resolve())] if asked.serving is not None else []
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "FASTVLM_PEERS": str(asked.peers.resolve())}
    return (
        [sys.executable, "-c", TRANSFORMERS, *options, "--device", "cpu"],
        {**environment, "HF_HUB_OFFLINE": "1"},
        folder,
    )


@contextmanager
def serving(server: str, asked: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """A server that is ready: its URL, and the name of its model. Its log goes to a file beside the results."""
    port = free_port()
    command, environment, model = command_of(server, asked, port)
    url = f"http://127.0.0.1:{port}"
    with (asked.out / f"{server}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})  # noqa: S603
        try:
            wait_until_ready(f"{url}/{'ready' if server.startswith('fastvlm') else 'health'}", process)
            yield url, model
        finally:
            process.terminate()
            process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    """Return when `url` answers with 200."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"the server at {url} did not become ready; see its log")


# ---------------------------------------------------------------------------------------------- load


def load(url: str, model: str, concurrency: int, numbers: range, asked: argparse.Namespace) -> dict:
    """One run of aiperf; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        questions, results = Path(folder) / "questions.jsonl", Path(folder) / "results"
        write_questions(questions, numbers, asked.side)
        # On a small machine the tool's own processes, one of which never sleeps, must not take the servers' cores.
        command = ["nice", "-n", "19", str(asked.aiperf), "profile", "--model", model, "--url", url]
        command += ["--endpoint-type", "chat"]
        command += ["--streaming", "--use-server-token-count", "--tokenizer", str(asked.checkpoint.resolve())]
        command += ["--input-file", str(questions), "--custom-dataset-type", "single_turn"]
        command += ["--dataset-sampling-strategy", "sequential", "--concurrency", str(concurrency)]
        command += ["--request-count", str(len(numbers)), "--output-artifact-dir", str(results), "--ui", "none"]
        command += ["--workers-max", "1", "--record-processors", "1", "--no-server-metrics", "--no-gpu-telemetry"]
        command += ["--extra-inputs", f"max_tokens:{asked.tokens}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - named by the caller
        found = list(results.rglob("profile_export_aiperf.json"))
        if done.returncode or not found:
            raise SystemExit(f"aiperf failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return figures(json.loads(found[0].read_text()), concurrency)


def figures(report: dict, concurrency: int) -> dict:
    """What is kept of aiperf's report: seconds, tokens, rates."""
    return {
        "concurrency": concurrency,
        "requests": report["request_count"]["avg"],
        "ttft_median_s": report["time_to_first_token"]["p50"] / 1000,
        "ttft_p90_s": report["time_to_first_token"]["p90"] / 1000,
        "latency_median_s": report["request_latency"]["p50"] / 1000,
        "output_tokens": report["output_sequence_length"]["avg"],
        "output_tokens_per_s": report["output_token_throughput"]["avg"],
        "requests_per_s": report["request_throughput"]["avg"],
    }


def warm_up(url: str, model: str, side_px: int) -> None:
    """One question that is not counted, about a picture that does not come again."""
    address = f"data:image/jpeg;base64,{base64.b64encode(picture(-1, side_px)).decode()}"
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": address}}]
    asked = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=START_S).raise_for_status()


def run(server: str, asked: argparse.Namespace) -> list[dict]:
    """All concurrencies against one server, after requests that are not counted."""
    rows, first = [], 0
    with serving(server, asked) as (url, model):
        warm_up(url, model, asked.side)
        for concurrency in asked.concurrency:
            numbers = range(first, first + asked.requests * concurrency)
            first = numbers.stop
            rows.append({"server": server, **load(url, model, concurrency, numbers, asked)})
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows: list[dict], baseline: str) -> str:
    """Markdown; the ratio is that of output tokens a second to the baseline's."""
    base = {row["concurrency"]: row["output_tokens_per_s"] for row in rows if row["server"] == baseline}
    lines = [
        "| server | concurrency | requests | TTFT median s | TTFT p90 s | output tokens/s | requests/s | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reference = base.get(row["concurrency"])
        ratio = f"{row['output_tokens_per_s'] / reference:.2f}" if reference else ""
        lines.append(
            f"| {row['server']} | {row['concurrency']} | {row['requests']:.0f} | {row['ttft_median_s']:.2f} | "
            f"{row['ttft_p90_s']:.2f} | {row['output_tokens_per_s']:.2f} | {row['requests_per_s']:.3f} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the checkpoint, run the servers in turn, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder; made if it is not there")
    parser.add_argument("--preset", default="0.5b")
    parser.add_argument("--aiperf", type=Path, required=True, help="the command, in an environment of its own")
    parser.add_argument("--serving", type=Path, help="folder with what `transformers serve` needs beside transformers")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="folder with timm and torchvision")
    parser.add_argument("--servers", nargs="+", default=["transformers", "fastvlm"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--requests", type=int, default=2, help="for each of the concurrent clients")
    parser.add_argument("--tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--serve", default="", help="more options of fastvlm serve: --serve='--admission-ratio 1000'")
    parser.add_argument("--out", type=Path, default=Path("load-results"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    make_checkpoint(asked.preset, asked.checkpoint)
    rows = [row for server in asked.servers for row in run(server, asked)]
    (asked.out / f"load-{asked.side}.json").write_text(json.dumps(rows, indent=2) + "\n")
    sys.stdout.write(table(rows, asked.servers[0]) + "\n")


if __name__ == "__main__":
    main()
