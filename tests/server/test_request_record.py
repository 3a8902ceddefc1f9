"""What is known of a request: its headers' values, at any moment."""

import re

from engine.fake import FakeEngine
from engine.messages import Timing
from server.metrics import Metrics
from server.request_record import RequestRecord

_METRIC = re.compile(r"[a-z]+;dur=\d+\.\d")


def test_one_record_for_each_scope() -> None:
    scope = {"type": "http", "method": "GET"}
    record = RequestRecord.of(scope)
    assert RequestRecord.of(scope) is record
    assert RequestRecord.of({"type": "http"}).request_id != record.request_id


def test_server_timing_says_what_is_known_by_then() -> None:
    record = RequestRecord({"type": "http"})
    assert re.fullmatch(r"total;dur=\d+\.\d", record.server_timing())
    timer = Metrics("m", FakeEngine()).request_started(record, "/e", "chat", "m")
    assert record.server_timing().startswith("total")
    timer.first_token(Timing(0.0121, 0.5))
    assert record.server_timing().startswith("queue;dur=12.1, prefill;dur=500.0, total;dur=")
    timer.finished(outcome="stop", prompt_tokens=1, cached_tokens=0, output_tokens=1)
    names = [part.partition(";")[0] for part in record.server_timing().split(", ")]
    assert names == ["queue", "prefill", "decode", "total"]
    assert all(_METRIC.fullmatch(part) for part in record.server_timing().split(", "))


def test_who_left_before_the_answer_has_got_499() -> None:
    record = RequestRecord({"type": "http"})
    assert record.final_status == 499
    record.status = 200
    assert record.final_status == 200
