"""Log lines on stderr for the engine process, as JSON or for a terminal: the standard library only,
as on a bare GPU machine.

`extra={"fields": {...}}` adds fields to a record. Lines look like those of server/logging.py.
"""

import json
import logging
import sys
import time
from typing import Literal

LogFormat = Literal["json", "console"]

_UNITS = ("bytes", "KB", "MB", "GB", "TB")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """One line to be read: sizes in units and thousands marked."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(
            f"{name}={_shown(name, value)}" for name, value in _fields(record).items()
        )
        head = f"{_timestamp(record)} [{record.levelname.lower():<9}] {record.getMessage():<30}"
        line = f"{head} [{record.name}] {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(format: LogFormat = "json") -> None:
    """Send every record of this process to stderr. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _shown(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return _size(value) if "bytes" in name.split("_") else f"{value:,}"
    text = str(value)
    return repr(text) if " " in text else text


def _size(num_bytes: int) -> str:
    """A number of bytes in powers of 1000."""
    size, unit = float(num_bytes), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.4g}{_UNITS[unit]}"
