"""deploy/k8s, as kubectl itself builds it."""

from typing import Any

import kubernetes_validate
import pytest

from tests.deploy import kubernetes as k8s
from tests.deploy.tools import END_S, ROOT, documents, from_wheel, run

FOLDER = ROOT / "deploy" / "k8s"
DRAIN_S = 60  # of base/options.yaml
SECRETS = frozenset(("qwen-serve-redis",))  # examples/secret.yaml


def build(overlay: str) -> list[dict[str, Any]]:
    return documents(run(from_wheel("kubectl"), "kustomize", FOLDER / "overlays" / overlay))


OVERLAYS = {name: build(name) for name in ("single", "cluster")}
EXAMPLES = {path.name: documents(path.read_text()) for path in (FOLDER / "examples").iterdir()}


@pytest.mark.parametrize("name", OVERLAYS)
def test_objects_are_what_kubernetes_knows(name: str) -> None:
    for item in OVERLAYS[name]:
        k8s.check_schema(item)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_kubernetes_knows(name: str) -> None:
    for item in EXAMPLES[name]:
        k8s.check_schema(item)
        assert item["metadata"]["namespace"] == "qwen-serve"


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject"])
def test_a_field_that_nobody_knows_is_found(kind: str) -> None:
    (item, *_) = k8s.of_kind(OVERLAYS["cluster"], kind)
    wrong = {**item, "spec": {**item["spec"], "replicaz": 3}}
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        k8s.check_schema(wrong)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_are_confined(name: str) -> None:
    (namespace,) = k8s.of_kind(OVERLAYS[name], "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in k8s.of_kind(OVERLAYS[name], *k8s.WORKLOADS):
        k8s.check_pod(k8s.pod_of(workload))


@pytest.mark.parametrize("name", OVERLAYS)
def test_servers_drain(name: str) -> None:
    items = OVERLAYS[name]
    options = k8s.named(items, "ConfigMap", "qwen-serve")["data"]
    assert options["QWEN_SERVE_DRAIN_TIMEOUT"] == str(DRAIN_S)
    k8s.check_server(k8s.pod_of(k8s.named(items, "Deployment", "server")), DRAIN_S)


def test_engines_have_no_probes_but_time_to_hand_over() -> None:
    pod = k8s.pod_of(k8s.named(OVERLAYS["cluster"], "Deployment", "engine"))
    assert not {"startupProbe", "livenessProbe", "readinessProbe"} & set(pod["containers"][0])
    assert pod["terminationGracePeriodSeconds"] > DRAIN_S + END_S


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_named_is_there(name: str) -> None:
    k8s.check_references(OVERLAYS[name], SECRETS)
    k8s.check_variables(OVERLAYS[name])


def test_the_examples_hold_the_secrets_and_no_values() -> None:
    secrets = EXAMPLES["secret.yaml"]
    assert {item["metadata"]["name"] for item in secrets} == {*SECRETS, "qwen-serve"}
    assert {value for item in secrets for value in item["stringData"].values()} == {""}


def test_the_commands_are_those_of_the_image() -> None:
    commands = {
        (name, item["metadata"]["name"]): k8s.pod_of(item)["containers"][0]["args"]
        for name, items in OVERLAYS.items()
        for item in k8s.of_kind(items, "Deployment")
    }
    assert commands == {
        ("single", "server"): ["serve"],
        ("cluster", "server"): ["server"],
        ("cluster", "engine"): ["engine"],
    }


def test_engines_follow_the_depth_of_the_queue() -> None:
    (scaled,) = k8s.of_kind(OVERLAYS["cluster"], "ScaledObject")
    k8s.check_scale_by_depth(scaled)
    assert scaled["spec"]["scaleTargetRef"]["name"] == "engine"
    for item in k8s.of_kind(OVERLAYS["cluster"], "Deployment"):
        assert "replicas" not in item["spec"]  # or each `apply` would undo the autoscaler's work


def test_many_nodes_share_the_models() -> None:
    modes = {
        name: k8s.named(items, "PersistentVolumeClaim", "models")["spec"]["accessModes"]
        for name, items in OVERLAYS.items()
    }
    assert modes == {"single": ["ReadWriteOnce"], "cluster": ["ReadWriteMany"]}


def test_only_the_cluster_reaches_redis() -> None:
    policy = k8s.named(OVERLAYS["cluster"], "NetworkPolicy", "redis")
    (rule,) = policy["spec"]["ingress"]
    (source,) = rule["from"]
    (expression,) = source["podSelector"]["matchExpressions"]
    assert expression["values"] == ["server", "engine"]
