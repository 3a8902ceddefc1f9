"""What clients choose is in the logs, and cannot end a line, begin one or speak to a terminal."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from server import logging as server_logging
from server.logging import LogFormat, configure
from tests.server.scripted_app import App
from tests.server.small_app import client_of

EVIL = 'x\n{"level":"error"}\r\x1b[31m\x07\x00\x85\x9b31m\u2028\u2029\u202e'


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.usefixtures("restored")
async def test_a_record_is_one_line_whatever_is_in_it(format: LogFormat) -> None:
    stream = io.StringIO()
    configure(format, stream=stream)
    async with client_of(App().state) as client:
        path = "/" + "".join(f"%{byte:02x}" for byte in EVIL.encode())
        for url in (path, f"/v1/models{path}"):
            await client.get(url, headers=[(b"x-client-request-id", b"a\x85b\x9b31m\xff")])
    server_logging.get_logger("a").warning(EVIL, value=EVIL)
    written = stream.getvalue()
    lines = written.removesuffix("\n").split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines), lines
    if format == "json":
        assert [json.loads(line)["level"] for line in lines] == ["info", "info", "warning"]


@pytest.mark.usefixtures("restored")
def test_a_traceback_keeps_its_lines_for_people() -> None:
    stream = io.StringIO()
    configure("console", stream=stream)
    try:
        raise ValueError("no")
    except ValueError:
        server_logging.get_logger("a").exception("failed")
    assert stream.getvalue().count("\n") > 3
