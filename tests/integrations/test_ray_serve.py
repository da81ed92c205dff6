"""Ray Serve with two replicas, in the environment of `make ray`; what needs no Ray, on stand-ins for it."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import types
from typing import ClassVar

import pytest
import torch
from server_process import ROOT, example, question

from fastvlm import opening
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import CheckpointError, MissingExtraError, UsageError

PYTHON = ROOT / ".venv-ray/bin/python"
IMAGES = ("letter", "shapes", "red_star", "word", "objects", "letters", "five_shapes", "cat_photo")
TEXT = "What do you see?"
THREADS = torch.get_num_threads()  # as they are


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What two replicas answered before, while and after one of them was killed."""
    folder = tmp_path_factory.mktemp("ray")
    job, result = folder / "job.json", folder / "result.json"
    job.write_text(json.dumps({"questions": [[question(TEXT, example(name))] for name in IMAGES]}))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY", "FASTVLM", "PYTHON"))}
    done = subprocess.run(
        [PYTHON, ROOT / "tests/integrations/ray_serve_run.py", job, result],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def expected():
    engine = opening.open_engine("mini")
    content = [
        [{"type": "image", "path": str(ROOT / f"examples/{name}.png")}, {"type": "text", "text": TEXT}]
        for name in IMAGES
    ]
    params = SamplingParams(max_new_tokens=32)
    return [engine.generate([{"role": "user", "content": one}], params).text for one in content]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not PYTHON.exists(), reason="Ray is not there; run: make ray")
class TestTwoReplicas:
    def test_replicas_take_requests_only_when_they_are_ready(self, cluster):
        assert cluster["replicas"] == 2 and cluster["ready"] == [200] * 6

    def test_a_conversation_stays_where_its_prefix_is_known(self, cluster, expected):
        assert [turns["first"]["text"] for turns in cluster["conversations"]] == expected
        assert all(turns["second"]["cached"] > 64 for turns in cluster["conversations"]), "the image and more"

    def test_a_killed_replica_loses_at_most_the_streams_that_it_had_begun(self, cluster, expected):
        outcomes = cluster["outcomes"]
        lost = [outcome for outcome in outcomes if "error" in outcome]
        assert len(outcomes) == 72 and len(lost) <= 3, lost
        assert all(outcome["is_streamed"] and outcome["has_begun"] for outcome in lost), lost
        wrong = [o for o in outcomes if "error" not in o and o["text"] != expected[o["question"]]]
        assert not wrong

    def test_it_is_replaced(self, cluster, expected):
        assert cluster["new_replicas"] >= 1 and cluster["after"] == expected

    def test_bad_requests_are_refused(self, cluster):
        assert cluster["refused"] == 400


class Gauge:
    made: ClassVar[dict] = {}

    def __init__(self, name, description, tag_keys):
        self.keys, self.values = tag_keys, {}
        Gauge.made[name] = self

    def set(self, value, tags):
        assert set(tags) == set(self.keys)
        self.values[tuple(tags.values())] = value


class Deployment:
    def __init__(self, options, cls):
        self.options, self.cls = options, cls

    def bind(self, *arguments):
        self.arguments = arguments
        return self


class BaseRouter:
    async def choose_replicas(self, candidates, pending):
        return [["by session"]]


@pytest.fixture
def ray_serve(monkeypatch):
    """`ray_serve` on stand-ins for what it uses of Ray 2.60."""
    Gauge.made = {}
    serve = types.SimpleNamespace(
        deployment=lambda **options: lambda cls: Deployment(options, cls), ingress=lambda: lambda cls: cls
    )
    contents = {
        "ray": {"serve": serve},
        "ray.serve": {"metrics": types.SimpleNamespace(Gauge=Gauge)},
        "ray.serve.config": {"RequestRouterConfig": dict},
        "ray.serve.experimental": {},
        "ray.serve.experimental.consistent_hash_router": {"ConsistentHashRouter": BaseRouter},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in os.environ if name.startswith("FASTVLM_SERVE")]:
        monkeypatch.delenv(name)
    names = [f"fastvlm.integrations.{name}" for name in ("ray_serve", "ray_metrics")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(names[0])
    for name in names:
        sys.modules.pop(name, None)


def test_arguments_are_settings_of_serve_and_numbers_of_replicas(ray_serve, monkeypatch):
    monkeypatch.setenv("FASTVLM_SERVE_MAX_IMAGES", "2")
    monkeypatch.setenv("FASTVLM_SERVE_SLOTS", "8")
    made = ray_serve.app({"model": "mini", "replicas": 3, "slots": "6", "num_cpus": "2", "page": "false"})
    settings, num_threads = made.arguments
    assert (settings.model, settings.slots, settings.max_images, settings.page, num_threads) == ("mini", 6, 2, False, 2)
    assert settings.replicas == 1, "engines of one process"
    options = made.options
    assert options["num_replicas"] == 3 and "autoscaling_config" not in options
    assert options["max_ongoing_requests"] == 9 and options["ray_actor_options"]["num_cpus"] == 2
    router = options["request_router_config"]["request_router_class"]
    module, _, name = router.partition(":")
    assert getattr(sys.modules[module], name) is ray_serve.ConversationRouter


def test_a_range_of_replicas_scales_by_ongoing_requests(ray_serve):
    options = ray_serve.app({"replicas": "0-8", "slots": "4"}).options
    assert "num_replicas" not in options
    wanted = {"min_replicas": 0, "max_replicas": 8, "target_ongoing_requests": 4, "upscale_delay_s": 10}
    assert options["autoscaling_config"] == wanted
    assert ray_serve.app({"replicas": "auto"}).options["autoscaling_config"]["max_replicas"] == 100
    assert ray_serve.app({"replicas": "2-2"}).options["num_replicas"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"replicas": "many"}, "replicas is 'many'"),
        ({"replicas": "0"}, "replicas is '0'"),
        ({"replicas": "4-2"}, "replicas is '4-2'"),
        ({"num_gpus": "-1"}, "num_gpus is '-1'"),
        ({"slots": "no"}, "SLOTS is 'no'"),
        ({"nonsense": "1"}, "NONSENSE is not a setting"),
        ({"api_keys": "x" * 16}, "FASTVLM_SERVE_API_KEYS"),
    ],
)
def test_wrong_arguments_are_refused(ray_serve, arguments, words):
    with pytest.raises(UsageError, match=words):
        ray_serve.app(arguments)


def test_requests_without_a_session_go_to_one_of_two(ray_serve):
    router, candidates = ray_serve.ConversationRouter(), ["a", "b", "c"]

    def pending(session):
        context = types.SimpleNamespace(should_backoff=False)
        return types.SimpleNamespace(metadata=types.SimpleNamespace(session_id=session), routing_context=context)

    request = pending("")
    (drawn,) = asyncio.run(router.choose_replicas(candidates, request))
    assert len(set(drawn)) == 2 and set(drawn) < set(candidates) and request.routing_context.should_backoff
    assert asyncio.run(router.choose_replicas(["a"], pending(""))) == [["a"]]
    assert asyncio.run(router.choose_replicas(candidates, pending("s"))) == [["by session"]]
    assert asyncio.run(router.choose_replicas(candidates)) == [["by session"]]


def test_health_follows_the_model_and_metrics_reach_ray(ray_serve):
    replica = ray_serve.FastVlmReplica(ray_serve.app({}).arguments[0], THREADS)
    replica.service.metrics.requests.labels("/v1/models", "200").inc()
    asyncio.run(replica.check_health())
    assert Gauge.made["fastvlm_requests_total"].values == {("/v1/models", "200"): 1}
    assert not any(name.endswith("_bucket") for name in Gauge.made)
    replica.service.failure = UsageError("no model")
    with pytest.raises(UsageError, match="no model"):
        asyncio.run(replica.check_health())


def started(replica) -> bool:
    """Whether the application answers requests as soon as it has started."""

    async def run():
        application = replica.__serve_build_asgi_app__()
        async with application.router.lifespan_context(application):
            return replica.service.is_ready

    return asyncio.run(run())


def test_the_application_starts_with_the_model_or_fails(ray_serve):
    with pytest.raises(CheckpointError, match="nowhere"):
        started(ray_serve.FastVlmReplica(ray_serve.app({"model": "nowhere/near/it"}).arguments[0], THREADS))
    assert started(ray_serve.FastVlmReplica(ray_serve.app({"model": "mini"}).arguments[0], THREADS))


@pytest.mark.parametrize("name", ["ray_serve", "ray_metrics"])
def test_without_ray_it_is_one_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, f"fastvlm.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[ray\]"):
        importlib.import_module(f"fastvlm.integrations.{name}")
