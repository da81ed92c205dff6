"""The Helm chart: its objects, against the settings of the server and what its templates read."""

import re

import pytest
import yaml
from charts import CHART, objects, rendered
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.server.setting_sources import read_settings
from fastvlm.server.settings import ServeSettings, declared_settings

NEEDED = {"image": {"repository": "registry.example.org/fastvlm"}, "apiKeys": {"existingSecret": "keys"}}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
FULL = NEEDED | {
    "model": {"name": "/models/FastVLM-0.5B", "existingClaim": "models"},
    "hub": {"existingClaim": "hub", "existingSecret": "hub-token", "isOffline": True},
    "adapters": [{"name": "a", "path": "/models/a"}, {"name": "b", "path": "/models/b"}],
    "settings": {
        "image_cache_bytes": 2**28,
        "request_timeout_s": 12.5,
        "remote_hosts": ["a.org", "b.org"],
        "page": False,
    },
    "runtimeClassName": "nvidia",
    "ingress": {"enabled": True, "hosts": [{"host": "vlm.example.org"}], "tls": [{"secretName": "tls"}]},
    "keda": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "extraArgs": ["--access-log"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "imagePullSecrets": [{"name": "registry"}],
}


def container(found):
    (one,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    return one


def environment(found):
    """The variables of the container; a secret's as text with enough characters for an API key."""
    return {each["name"]: each.get("value", "a secret of 20 characters") for each in container(found)["env"]}


def settings(found) -> ServeSettings:
    """What the server makes of the container's environment."""
    return read_settings({}, environment(found), None)


def test_the_default_is_one_pod_that_clients_reach(tmp_path):
    found = objects(NEEDED, tmp_path)
    assert set(found) == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}
    deployment = found["Deployment"]["spec"]
    assert deployment["replicas"] == 1
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    (port,) = container(found)["ports"]
    assert settings(found).port == port["containerPort"] and settings(found).host == "0.0.0.0"
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_probes_ask_the_servers_own_paths(tmp_path):
    one = container(objects(NEEDED, tmp_path))
    paths = {name: one[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert one["startupProbe"]["failureThreshold"] * one["startupProbe"]["periodSeconds"] == 600


def test_a_pod_has_time_for_its_running_replies(tmp_path):
    found = objects(NEEDED, tmp_path)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    sleep = float(container(found)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep + settings(found).shutdown_grace_s


def test_every_value_arrives(tmp_path):
    found = objects(FULL, tmp_path)
    served = settings(found)
    assert served.model == "/models/FastVLM-0.5B" and served.adapter_folders == {"a": "/models/a", "b": "/models/b"}
    assert (served.image_cache_bytes, served.request_timeout_s, served.page) == (2**28, 12.5, False)
    assert served.remote_hosts == ("a.org", "b.org")
    pod = found["Deployment"]["spec"]["template"]["spec"]
    claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    assert claims == {None, "models", "hub"}
    assert environment(found)["HF_HUB_OFFLINE"] == "1" and environment(found)["HTTPS_PROXY"] == "http://proxy"
    assert "replicas" not in found["Deployment"]["spec"]  # KEDA's
    assert found["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    monitor = found["ServiceMonitor"]["spec"]["endpoints"][0]
    assert (monitor["path"], monitor["authorization"]["credentials"]["name"]) == ("/metrics", "keys")
    assert found["Ingress"]["spec"]["rules"][0]["host"] == "vlm.example.org"


def test_the_pods_autoscaler_takes_the_waiting_replies(tmp_path):
    found = objects(NEEDED | {"hpa": {"enabled": True, "maxReplicas": 3}}, tmp_path)
    spec = found["HorizontalPodAutoscaler"]["spec"]
    assert spec["maxReplicas"] == 3 and spec["metrics"][0]["pods"]["metric"]["name"] == "fastvlm_queue_waiting"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"apiKeys": {"existingSecret": ""}}, "does not start without API keys"),
        ({"image": {"repository": ""}}, "build the repository's Dockerfile"),
        ({"keda": {"enabled": True}, "hpa": {"enabled": True}}, "Enable one"),
    ],
)
def test_what_cannot_work_is_an_error(missing, message, tmp_path):
    run = rendered(NEEDED | missing, tmp_path)
    assert run.returncode != 0 and message in run.stderr


@given(
    numbers=st.dictionaries(
        st.sampled_from(["slots", "max_body_bytes", "image_memory_bytes"]), st.integers(2**28, 2**52)
    )
)
def test_large_numbers_stay_integers(numbers, tmp_path_factory):
    served = settings(objects(NEEDED | {"settings": numbers}, tmp_path_factory.mktemp("values")))
    assert {name: getattr(served, name) for name in numbers} == numbers


def test_templates_read_values_that_are_declared():
    """Without Helm too: a value that `values.yaml` does not have would be empty without a word."""
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    for path in re.findall(r"\.Values\.([\w.]+)", templates):
        part = VALUES
        for name in path.split("."):
            assert name in part, path
            part = part[name]


def test_settings_of_the_chart_are_the_servers():
    assert set(VALUES["settings"]) <= set(declared_settings())
    assert VALUES["settings"]["shutdown_grace_s"] + VALUES["preStopSeconds"] < VALUES["terminationGracePeriodSeconds"]
