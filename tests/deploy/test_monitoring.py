"""Alert rules and dashboard: valid, tested, documented, and about metrics that there are."""

import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.test_metric_names import used_metrics

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
_METRIC = re.compile(r"\b(?:qwen_serve|gen_ai_server|gen_ai_client)_\w+")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    groups = read_yaml(PROMETHEUS / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    path = GRAFANA / "dashboards" / "qwen-serve.json"
    parsed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return parsed


def dashboard_expressions() -> list[str]:
    """Every expression, that of variables and annotations too."""
    board = dashboard()
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    return [
        *(target["expr"] for target in targets),
        *(each["expr"] for each in board["annotations"]["list"]),
        *(each["definition"] for each in board["templating"]["list"] if "definition" in each),
    ]


def served_series() -> set[str]:
    return {
        sample.name
        for family in text_string_to_metric_families(used_metrics())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_fires_in_one_test_and_not_in_another() -> None:
    cases: defaultdict[str, set[bool]] = defaultdict(set)
    for test in read_yaml(PROMETHEUS / "alerts_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert cases == {alert["alert"]: {True, False} for alert in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_it_is_and_has_its_section(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook"} == set(alert["annotations"])
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    assert OPERATIONS.count(f"\n### {alert['alert']}\n") == 1


def test_no_section_is_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE) == [a["alert"] for a in alerts()]


@pytest.mark.parametrize("expression", [alert["expr"] for alert in alerts()])
def test_alerts_ask_for_what_is_served(expression: str) -> None:
    named = set(_METRIC.findall(expression))
    assert named or "up{" in expression
    assert named <= served_series()


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_the_dashboard_asks_for_what_is_served(expression: str) -> None:
    named = set(_METRIC.findall(expression))
    assert named or "up{" in expression
    assert named <= served_series()
    assert 'job="qwen-serve"' in expression


def test_everything_asks_for_the_job_that_is_scraped() -> None:
    (job,) = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    assert job["job_name"] == "qwen-serve"
    (servers,) = job["dns_sd_configs"]
    assert (servers["names"], servers["type"], servers["port"]) == (["server"], "A", 8000)


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    chosen = dashboard()["templating"]["list"][0]["current"]["value"]
    assert chosen == source["uid"]
    (provider,) = read_yaml(provisioning / "dashboards" / "qwen-serve.yml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
