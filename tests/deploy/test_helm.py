"""The chart, as helm itself checks and renders it."""

import json
import tomllib
from typing import Any

import pytest
import yaml

from tests.deploy import kubernetes as k8s
from tests.deploy.tools import ROOT, documents, fails, from_wheel, run

CHART = ROOT / "deploy" / "helm" / "qwen-serve"
NAME = "test-qwen-serve"
EVERYTHING = (
    *("mode=cluster", "engine.autoscaling.enabled=true", "serviceMonitor.enabled=true"),
    *("ingress.enabled=true", "ingress.host=llm.example.com", "ingress.tlsSecretName=tls"),
    *("gpu.count=2", "secretName=options", "keysSecretName=keys", "imagePullSecrets[0].name=pull"),
    *("nodeSelector.gpu=yes", "podAnnotations.team=llm", "models.persistence.storageClassName=nfs"),
)
WAYS: dict[str, tuple[str, ...]] = {
    "single": (),
    "single without a volume": ("models.persistence.enabled=false",),
    "single with a GPU": ("gpu.count=1",),
    "cluster": ("mode=cluster",),
    "cluster with an own Redis": ("mode=cluster", "queue.urlSecretName=redis"),
    "cluster with everything": EVERYTHING,
    "cluster without extras": (
        *("mode=cluster", "networkPolicy.enabled=false", "podDisruptionBudget.enabled=false"),
        "server.autoscaling.enabled=false",
    ),
}
SECRETS = frozenset(("options", "keys", "redis"))


def render(*settings: str) -> list[dict[str, Any]]:
    words = [word for setting in settings for word in ("--set", setting)]
    return documents(run(from_wheel("helm"), "template", "test", CHART, *words))


RENDERED = {way: render(*settings) for way, settings in WAYS.items()}


@pytest.mark.parametrize("way", WAYS)
def test_helm_has_nothing_to_say(way: str) -> None:
    words = [word for setting in WAYS[way] for word in ("--set", setting)]
    assert "0 chart(s) failed" in run(from_wheel("helm"), "lint", "--strict", CHART, *words)


@pytest.mark.parametrize("way", WAYS)
def test_objects_are_what_kubernetes_knows(way: str) -> None:
    for item in RENDERED[way]:
        k8s.check_schema(item)
    k8s.check_references([item for item in RENDERED[way] if item["kind"] != "Pod"], SECRETS)
    k8s.check_variables(RENDERED[way])


@pytest.mark.parametrize("way", WAYS)
def test_pods_are_confined(way: str) -> None:
    for workload in k8s.of_kind(RENDERED[way], *k8s.WORKLOADS, "Pod"):
        pod = k8s.pod_of(workload)
        if workload["kind"] == "Pod":  # the test's, with the namespace's own account
            pod = {"serviceAccountName": "default", **pod}
        k8s.check_pod(pod)


@pytest.mark.parametrize("way", WAYS)
def test_servers_drain(way: str) -> None:
    k8s.check_server(k8s.pod_of(k8s.named(RENDERED[way], "Deployment", f"{NAME}-server")), 60)


def test_the_drain_may_be_longer() -> None:
    items = render("drainTimeout=600")
    k8s.check_server(k8s.pod_of(k8s.named(items, "Deployment", f"{NAME}-server")), 600)
    assert k8s.named(items, "ConfigMap", NAME)["data"]["QWEN_SERVE_DRAIN_TIMEOUT"] == "600"


def environment(items: list[dict[str, Any]], part: str) -> dict[str, Any]:
    (container,) = k8s.pod_of(k8s.named(items, "Deployment", f"{NAME}-{part}"))["containers"]
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom"))
        for variable in container.get("env", [])
    }


def test_only_engines_get_gpus() -> None:
    items = RENDERED["cluster with everything"]
    engine = k8s.pod_of(k8s.named(items, "Deployment", f"{NAME}-engine"))
    assert engine["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert environment(items, "engine")["QWEN_SERVE_TENSOR_PARALLEL_SIZE"] == "2"
    assert engine["nodeSelector"] == {"gpu": "yes"}
    server = k8s.pod_of(k8s.named(items, "Deployment", f"{NAME}-server"))
    assert "nvidia" not in str(server)
    assert "nodeSelector" not in server


def test_threads_are_the_cores_of_the_pod() -> None:
    expected = {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert environment(RENDERED["cluster"], "engine")["QWEN_SERVE_NUM_THREADS"] == expected
    assert environment(RENDERED["single"], "server")["QWEN_SERVE_NUM_THREADS"] == expected
    unlimited = render("single.resources.limits.cpu=null")
    assert environment(unlimited, "server")["QWEN_SERVE_NUM_THREADS"] == {
        "resourceFieldRef": {"resource": "requests.cpu"}
    }


def test_keys_are_the_servers_only() -> None:
    items = RENDERED["cluster with everything"]
    assert environment(items, "server")["QWEN_SERVE_KEYS_FILE"] == "/run/secrets/qwen-serve/keys"
    assert "KEYS" not in str(k8s.named(items, "Deployment", f"{NAME}-engine"))


def test_options_become_variables() -> None:
    chosen = {
        "max_model_len": 8192,
        "kv_cache_memory": "4GiB",
        "enable-prefix-caching": False,
        "served_model_name": ["a", "b"],
        "rope_scaling": {"rope_type": "yarn", "factor": 2.5},
    }
    words = ("--set-json", f"options={json.dumps(chosen)}")
    items = documents(run(from_wheel("helm"), "template", "test", CHART, *words))
    data = k8s.named(items, "ConfigMap", NAME)["data"]
    assert (
        data.items()
        >= {
            "QWEN_SERVE_MAX_MODEL_LEN": "8192",
            "QWEN_SERVE_KV_CACHE_MEMORY": "4GiB",
            "QWEN_SERVE_ENABLE_PREFIX_CACHING": "false",
            "QWEN_SERVE_SERVED_MODEL_NAME": "a,b",
            "QWEN_SERVE_ROPE_SCALING": '{"factor":2.5,"rope_type":"yarn"}',
        }.items()
    )


def test_engines_follow_the_depth_of_the_queue() -> None:
    (scaled,) = k8s.of_kind(RENDERED["cluster with everything"], "ScaledObject")
    k8s.check_scale_by_depth(scaled)
    engine = k8s.named(RENDERED["cluster with everything"], "Deployment", f"{NAME}-engine")
    assert "replicas" not in engine["spec"]
    assert k8s.named(RENDERED["cluster"], "Deployment", f"{NAME}-engine")["spec"]["replicas"] == 1


def test_the_bundled_redis_has_a_password_of_its_own() -> None:
    first, second = (
        k8s.named(render("mode=cluster"), "Secret", f"{NAME}-queue")["stringData"] for _ in range(2)
    )
    assert first["password"] != second["password"]
    assert len(first["password"]) == 40
    assert first["url"] == f"redis://:{first['password']}@{NAME}-redis:6379/0"
    assert not k8s.of_kind(RENDERED["cluster with an own Redis"], "Secret", "StatefulSet")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("mode=clustre", "value must be one of"),
        ("engin.replicas=3", "additional properties 'engin' not allowed"),
        ("server.replicas=0", "minimum"),
        ("options.port=9000", "'not' failed"),
        ("ingress.enabled=true", "ingress.host: the name that clients use"),
    ],
)
def test_mistakes_are_found(setting: str, reason: str) -> None:
    assert reason in fails(from_wheel("helm"), "template", "test", CHART, "--set", setting)


def test_the_charts_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project, project)


def test_the_notes_say_that_nobody_is_kept_out() -> None:
    words = ("install", "test", CHART, "--dry-run=client")
    assert "No API key is asked for" in run(from_wheel("helm"), *words)
    kept = run(from_wheel("helm"), *words, "--set", "secretName=options")
    assert "No API key is asked for" not in kept
