"""Two replicas on a cluster of one machine; runs in the environment of `make ray`.

    ray_serve_run.py JOB RESULT

JOB is JSON: `questions`, a list of lists of messages. RESULT gets what was answered before, while and after one replica
is killed.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_LOG_TO_STDERR="0")
os.environ.update(RAY_health_check_timeout_ms="3000000")
os.environ.update(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="3000", RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="3000")

import httpx
import openai
import ray
from ray import serve
from ray.serve._private import api as serve_api

from fastvlm.integrations.ray_serve import app

CLIENTS, LOAD, KILLED_AFTER = 6, 72, 24  # threads; requests in all; answered when a replica is killed


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def parent(pid: int) -> int:
    """Id of the process that started `pid`; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def replicas() -> set[int]:
    """Process ids of this cluster's replicas (Linux). Another cluster may run on the same machine."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::ServeReplica:fastvlm:"):
                pid = ancestor = int(entry.name)
                while ancestor > 1 and ancestor != os.getpid():
                    ancestor = parent(ancestor)
                found |= {pid} if ancestor == os.getpid() else set()
    return found


def whole(client: openai.OpenAI, messages: list, **headers: str) -> dict:
    """A reply in one piece; OpenAI's client repeats a request that got status 500."""
    reply = client.chat.completions.create(model="mini", messages=messages, max_tokens=32, extra_headers=headers)
    return {"text": reply.choices[0].message.content, "cached": reply.usage.prompt_tokens_details.cached_tokens}


def streamed(client: openai.OpenAI, messages: list, outcome: dict) -> str:
    """The text of a streamed reply; sets `has_begun` in `outcome` with its first piece."""
    text, reason = "", None
    for chunk in client.chat.completions.create(model="mini", messages=messages, max_tokens=32, stream=True):
        outcome["has_begun"] = True
        for choice in chunk.choices:
            text, reason = text + (choice.delta.content or ""), choice.finish_reason
    if reason is None:
        raise RuntimeError("the stream ended before its end")
    return text


def conversation(client: openai.OpenAI, number: int, messages: list) -> dict:
    """Two turns in one session."""
    session = {"x-session-id": f"session {number}"}
    first = whole(client, messages, **session)
    later = [*messages, {"role": "assistant", "content": first["text"]}, {"role": "user", "content": "Are you sure?"}]
    return {"first": first, "second": whole(client, later, **session)}


def load(client: openai.OpenAI, questions: list, kill) -> list[dict]:
    """Outcomes of LOAD requests by CLIENTS threads, every second one streamed; `kill` is called among them."""
    outcomes, todo, lock = [], list(range(LOAD)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not todo:
                    return
                number = todo.pop(0)
            question = number % len(questions)
            outcome = {"question": question, "is_streamed": number % 2 == 0, "has_begun": False}
            try:
                if outcome["is_streamed"]:
                    outcome["text"] = streamed(client, questions[question], outcome)
                else:
                    outcome["text"] = whole(client, questions[question])["text"]
            except Exception as error:  # noqa: BLE001 - counted by the test
                outcome["error"] = f"{type(error).__name__}: {error}"
            with lock:
                outcomes.append(outcome)
                is_time = len(outcomes) == KILLED_AFTER
            if is_time:
                kill()

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def until_two_again(before: set[int]) -> int:
    """Wait until two replicas work, one of them new; the number of new ones. The test has the only time limit."""
    while True:
        new = replicas() - before
        states = serve.status().applications["fastvlm"].deployments["FastVlm"].replica_states
        if new and {getattr(state, "value", state): count for state, count in states.items()} == {"RUNNING": 2}:
            return len(new)
        time.sleep(0.5)


def start_cluster() -> None:
    """Start Ray; again if its processes took longer than its fixed limit of 30 s."""
    for attempts_left in range(9, -1, -1):
        try:
            ray.init(
                "local", num_cpus=6, include_dashboard=False, log_to_driver=False
            )  # CPUs are counted, not reserved
        except Exception:  # noqa: PERF203
            ray.shutdown()
            if not attempts_left:
                raise
        else:
            return


def main(job: str, result: str) -> None:
    questions = json.loads(Path(job).read_text())["questions"]
    start_cluster()
    serve_api.HTTP_PROXY_TIMEOUT = 3000  # as above: a busy machine is not a failure
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app({"model": "mini", "replicas": "2", "slots": "2"}), name="fastvlm")
        url = f"http://127.0.0.1:{port}"
        found = {"ready": [httpx.get(f"{url}/ready", timeout=None).status_code for _ in range(6)]}
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none needed", timeout=None) as client:
            found["conversations"] = [conversation(client, n, messages) for n, messages in enumerate(questions)]
            before = replicas()
            found["replicas"] = len(before)
            found["outcomes"] = load(client, questions, lambda: os.kill(min(before), signal.SIGKILL))
            found["new_replicas"] = until_two_again(before)
            found["after"] = [whole(client, messages)["text"] for messages in questions]
        found["refused"] = httpx.post(f"{url}/v1/chat/completions", json={"model": "mini"}, timeout=None).status_code
        Path(result).write_text(json.dumps(found))
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
