"""What every Kubernetes object of ours must be, of deploy/k8s and of the chart."""

from collections.abc import Iterable
from typing import Any

import kubernetes_validate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

from tests.deploy.options import VARIABLES
from tests.deploy.tools import END_S, variables_in

Object = dict[str, Any]

KUBERNETES = "1.33"
OPERATORS = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}
WORKLOADS = ("Deployment", "StatefulSet")
PRE_STOP_S = 5


def check_schema(item: Object) -> None:
    """Against Kubernetes' own description, or that of the operator the kind belongs to; a field
    that is not in it is an error.
    """
    model = OPERATORS.get(item["kind"])
    if model is None:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        return
    item = without_newer_fields(item)
    read = model.model_validate(item)
    assert read.model_dump(by_alias=True, exclude_unset=True, mode="json") == item


def without_newer_fields(item: Object) -> Object:
    """The description of KEDA is that of 2.16; `behavior` of the fallback came with 2.17."""
    if item["kind"] != "ScaledObject":
        return item
    spec = dict(item["spec"])
    spec["fallback"] = {key: spec["fallback"][key] for key in ("failureThreshold", "replicas")}
    return {**item, "spec": spec}


def of_kind(items: Iterable[Object], *kinds: str) -> list[Object]:
    return [item for item in items if item["kind"] in kinds]


def named(items: Iterable[Object], kind: str, name: str) -> Object:
    (found,) = (item for item in of_kind(items, kind) if item["metadata"]["name"] == name)
    return found


def pod_of(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"] if "template" in workload["spec"] else {}
    return spec or workload["spec"]


def check_pod(pod: Object) -> None:
    """The profile `restricted` of the pod security standards, and more."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # or QWEN_SERVE_PORT could be a URL
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
    assert {kind for volume in pod.get("volumes", []) for kind in set(volume) - {"name"}} <= {
        *("persistentVolumeClaim", "emptyDir", "secret"),
    }


def check_server(pod: Object, drain_s: int) -> None:
    """It is asked only when it can answer, and ends only when it has answered."""
    (container,) = pod["containers"]
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(PRE_STOP_S)]
    assert pod["terminationGracePeriodSeconds"] > PRE_STOP_S + drain_s + END_S


def check_references(items: list[Object], outside: frozenset[str] = frozenset()) -> None:
    """Selectors find pods, and what pods name is there. `outside`: Secrets that a user makes."""
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in of_kind(items, *WORKLOADS)]
    selectors = [item["spec"]["selector"] for item in of_kind(items, "Service")]
    budgets = [*of_kind(items, "PodDisruptionBudget"), *of_kind(items, *WORKLOADS)]
    selectors += [item["spec"]["selector"]["matchLabels"] for item in budgets]
    for selector in selectors:
        assert sum(selector.items() <= labels.items() for labels in pods) == 1, selector
    there = {(item["kind"], item["metadata"]["name"]) for item in items}
    for pod in map(pod_of, of_kind(items, *WORKLOADS)):
        assert references(pod) - {("Secret", name) for name in outside} <= there
    for item in of_kind(items, "ScaledObject", "HorizontalPodAutoscaler"):
        assert ("Deployment", item["spec"]["scaleTargetRef"]["name"]) in there


def references(pod: Object) -> set[tuple[str, str]]:
    found = {("ServiceAccount", pod["serviceAccountName"])}
    for volume in pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            found.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        if "secret" in volume:
            found.add(("Secret", volume["secret"]["secretName"]))
    for container in pod["containers"]:
        for source in container.get("envFrom", []):
            kind, reference = next(iter(source.items()))
            if not reference.get("optional"):
                found.add(
                    ({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
                )
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                found.add(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    return found


def check_variables(items: list[Object]) -> None:
    assert set(variables_in(items)) <= VARIABLES


def check_scale_by_depth(item: Object) -> None:
    (trigger,) = item["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metricType"] == "AverageValue"  # of each engine
    assert trigger["metadata"]["query"].startswith("max(qwen_serve_engine_waiting_sequences{")
