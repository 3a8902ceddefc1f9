"""docs/metrics.md names exactly the metrics that a server serves."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from engine.fake import DEFAULT_INFO
from engine.messages import Timing
from server.metrics import Metrics
from server.request_record import RequestRecord
from server.vllm_metrics import ALIASES
from tests.server.metric_samples import FixedEngine

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\|", re.MULTILINE)
_VLLM = re.compile(r"`(vllm:\w+|http_request(?:s_total|_duration_seconds))`")
_GEN_AI = "gen_ai_operation_name gen_ai_provider_name gen_ai_request_model gen_ai_response_model"
_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")


def used_metrics(*, has_vllm_names: bool = False) -> str:
    """The page of a server in which every metric has a series."""
    metrics = Metrics("m", FixedEngine(), has_vllm_names=has_vllm_names)
    metrics.describe_engine(DEFAULT_INFO)
    record = RequestRecord({"type": "http", "method": "POST", "qwen.key": "team"})
    timer = metrics.request_started(record, "/e", "chat", "m")
    timer.first_token(Timing(0.0, 0.0))
    timer.token(1)
    timer.finished(outcome="stop", prompt_tokens=1, cached_tokens=0, output_tokens=2)
    metrics.http_response(record)
    return metrics.render()[0].decode()


def test_the_table_is_what_is_served() -> None:
    served = {}
    for family in text_string_to_metric_families(used_metrics()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        served[name] = (family.type, frozenset(labels))
    documented = {
        name: (kind, frozenset(re.findall(r"\w+", labels.replace("GENAI", _GEN_AI))))
        for name, kind, labels in _ROW.findall(PAGE)
    }
    assert documented == served


def test_vllms_names_are_all_documented() -> None:
    served = {_SUFFIX.sub("", alias.name) for alias in ALIASES}
    documented = {_SUFFIX.sub("", name) for name in _VLLM.findall(PAGE)}
    assert documented == served
    page = used_metrics(has_vllm_names=True)
    assert all(f"# TYPE {alias.name}" in page for alias in ALIASES)
