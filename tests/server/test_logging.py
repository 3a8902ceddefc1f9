"""Every record, whatever library made it, comes out as one line of the chosen form."""

import io
import json
import logging
import subprocess
import sys
import warnings
from typing import Any

import structlog

from server.logging import configure, get_logger


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_record_has_fields_and_context() -> None:
    stream = io.StringIO()
    log = get_logger("server.test")  # made before configure, as module loggers are
    configure("json", stream=stream)
    structlog.contextvars.bind_contextvars(request_id="req_1")
    log.info("request finished", status=200, path="/v1/models\nfake line")
    (record,) = lines(stream)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "request finished",
        "level": "info",
        "logger": "server.test",
        "request_id": "req_1",
        "status": 200,
        "path": "/v1/models\nfake line",
    }


def test_levels_below_the_chosen_one_are_left_out() -> None:
    stream = io.StringIO()
    configure("json", stream=stream, level="WARNING")
    get_logger("a").info("no")
    logging.getLogger("b").info("no")
    get_logger("a").warning("yes")
    assert [r["event"] for r in lines(stream)] == ["yes"]


def test_exception_is_one_line() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("a").exception("failed")
        logging.getLogger("b").exception("failed %s", "too")
    ours, foreign = lines(stream)
    assert (ours["event"], foreign["event"]) == ("failed", "failed too")
    for record in (ours, foreign):
        assert record["level"] == "error"
        assert "ValueError: broken" in record["exception"]
        assert "Traceback" in record["exception"]


def test_uvicorn_records_go_the_same_way() -> None:
    stream = io.StringIO()
    logging.getLogger("uvicorn.access").handlers = [logging.NullHandler()]  # as uvicorn leaves it
    logging.getLogger("uvicorn.access").propagate = False
    configure("json", stream=stream)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[1m", "n": 1})
    logging.getLogger("uvicorn.access").info('%s - "%s"', "127.0.0.1", "GET /")
    started, access = lines(stream)
    assert started["event"] == "Started"
    assert started["n"] == 1
    assert "color_message" not in started
    assert access["event"] == '127.0.0.1 - "GET /"'
    assert access["logger"] == "uvicorn.access"


def test_python_warnings_go_the_same_way() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    with warnings.catch_warnings():  # puts showwarning back: capture inside
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    (record,) = lines(stream)
    assert record["logger"] == "py.warnings"
    assert record["level"] == "warning"
    assert "old thing" in record["event"]


def test_values_json_cannot_hold_are_still_logged() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    get_logger("a").info("odd", value=object(), text="\ud800")
    assert "object object" in lines(stream)[0]["value"]


def test_console_is_for_people() -> None:
    stream = io.StringIO()
    configure("console", stream=stream)
    get_logger("server.test").warning("slow step", seconds=2)
    line = stream.getvalue()
    assert "slow step" in line
    assert "seconds=2" in line
    assert "\x1b" not in line  # not a terminal


def test_configure_again_does_not_double_the_lines() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    configure("json", stream=stream)
    get_logger("a").info("once")
    assert len(lines(stream)) == 1


def test_default_stream_is_stderr() -> None:
    code = "from server.logging import *; configure('json'); get_logger('a').info('hello')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert json.loads(run.stderr)["event"] == "hello"
