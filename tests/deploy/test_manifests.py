"""Compose, KServe and Grafana files: against the server's settings, paths and metrics."""

import json
import re
from pathlib import Path

import pytest
import yaml

from fastvlm.server.metrics import Metrics, _EngineCollector
from fastvlm.server.setting_sources import read_settings
from fastvlm.server.settings import declared_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
PREFIX = "FASTVLM_SERVE_"


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


@pytest.fixture(scope="module")
def service():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["fastvlm"]


def test_compose_sets_what_the_server_knows(service):
    environment = {name: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", value) for name, value in service["environment"].items()}
    settings = read_settings({}, environment | {PREFIX + "HOST": "0.0.0.0"}, None)
    assert seconds(service["stop_grace_period"]) > settings.shutdown_grace_s
    assert service["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]


def test_compose_asks_whether_the_model_is_ready(service):
    assert f":{declared_settings()['port'].default}/ready" in service["healthcheck"]["test"][-1]


@pytest.fixture(scope="module")
def kserve():
    documents = yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_kserves_runtime_is_the_one_that_the_service_names(kserve):
    model = kserve["InferenceService"]["spec"]["predictor"]["model"]
    runtime = kserve["ServingRuntime"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]


def test_kserve_calls_the_server_as_it_can_be_called(kserve):
    (container,) = kserve["ServingRuntime"]["spec"]["containers"]
    arguments = container["args"]
    flags = {setting.flag for setting in declared_settings().values()}
    assert {word for word in arguments if word.startswith("--")} <= flags
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert int(options["--port"]) == container["ports"][0]["containerPort"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == int(options["--port"])
        assert asked["path"] == ("/health" if probe == "livenessProbe" else "/ready")
    predictor = kserve["InferenceService"]["spec"]["predictor"]
    assert predictor["timeout"] == declared_settings()["request_timeout_s"].default
    assert predictor["terminationGracePeriodSeconds"] > declared_settings()["shutdown_grace_s"].default + 5


def test_the_dashboard_shows_metrics_that_there_are():
    dashboard = json.loads((DEPLOY / "grafana/fastvlm.json").read_text())
    metrics = Metrics()
    known = {name for family in metrics.registry.collect() for name in sample_names(family)}
    known |= {name for family in _EngineCollector({}).collect() for name in sample_names(family)}
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            shown |= set(re.findall(r"fastvlm_\w+", target["expr"]))
    assert shown and shown <= known, shown - known


def sample_names(family):
    """The names under which a family's samples are scraped."""
    return {
        "counter": {f"{family.name}_total"},
        "histogram": {f"{family.name}{end}" for end in ("_bucket", "_sum", "_count")},
    }.get(family.type, {family.name})


def test_panels_of_the_dashboard_do_not_overlap():
    places = [panel["gridPos"] for panel in json.loads((DEPLOY / "grafana/fastvlm.json").read_text())["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_ray_serves_arguments_are_settings_of_the_server():
    service = yaml.safe_load((DEPLOY / "ray/rayservice.yaml").read_text())["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    assert application["import_path"] == "fastvlm.integrations.ray_serve:app"
    assert set(application["args"]) <= {*declared_settings(), "replicas", "num_cpus", "num_gpus"}
    groups = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = groups[0]["template"]["spec"]["containers"]
    # The replica and what Ray itself needs.
    assert float(container["resources"]["limits"]["cpu"]) > application["args"]["num_cpus"]
