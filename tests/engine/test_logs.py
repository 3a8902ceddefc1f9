"""engine/logs.py: one record, as JSON and as a line to be read."""

import json
import logging
from collections.abc import Iterator

import pytest

from engine.logs import LogFormat, configure_logging

FIELDS = {"weight_bytes": 988_065_536, "num_parameters": 494032768, "quantization": "int4 on load"}


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def lines(format: LogFormat, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configure_logging(format)
    logger = logging.getLogger("engine.load")
    logger.info("model loaded", extra={"fields": FIELDS})
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    return capsys.readouterr().err.splitlines()


def test_json(root_logger: None, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, failed = (json.loads(line) for line in lines("json", capsys))
    timestamp = loaded.pop("timestamp")
    assert timestamp.endswith("Z") and len(timestamp) == len("2026-01-01T00:00:00.000Z")
    expected = {"level": "info", "logger": "engine.load", "event": "model loaded"}
    assert loaded == expected | FIELDS
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ValueError: broken")


def test_console(root_logger: None, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, *failed = lines("console", capsys)
    _, _, rest = loaded.partition(" ")
    assert rest == (
        "[info     ] model loaded                   [engine.load] weight_bytes=988.1MB "
        "num_parameters=494,032,768 quantization='int4 on load'"
    )
    assert "[error    ] failed" in failed[0]
    assert failed[-1] == "ValueError: broken"
