"""Structured logs of a server process: one line a record on stderr, JSON or for a terminal.

Our own records come through structlog; uvicorn's, other libraries' and Python warnings come through
the standard library. Both take the same way, so that every line has the same form and carries the
context (request_id, ...) bound with structlog.contextvars.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_OWN_LINES = ("exception", "stack")  # are ours, and have lines

LogFormat = Literal["json", "console"]

# Added to every record, whoever made it.
_COMMON: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)


def configure(format: LogFormat, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all records of this process to `stream` (None = stderr). May be called again.

    uvicorn must run with log_config=None, or it puts its own handlers back.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_COMMON, structlog.stdlib.ExtraAdder(), _drop_color_message],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(format, colors=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # One line for each outgoing HTTP request is not worth its place.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_COMMON,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # loggers made before `configure` follow it
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; keyword arguments of its methods become fields of the record."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _renderers(format: LogFormat, *, colors: bool) -> list[Processor]:
    if format == "console":
        return [_escape_control_characters, structlog.dev.ConsoleRenderer(colors=colors)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _escape_control_characters(
    logger: WrappedLogger, name: str, event_dict: EventDict
) -> EventDict:
    """Clients choose paths and ids: none may end a line or speak to the terminal. JSON escapes."""
    for key, value in event_dict.items():
        if isinstance(value, str) and key not in _OWN_LINES and not value.isprintable():
            event_dict[key] = "".join(map(_escaped, value))
    return event_dict


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def _drop_color_message(logger: WrappedLogger, name: str, event_dict: EventDict) -> EventDict:
    """uvicorn repeats each message with terminal colours in an extra field."""
    event_dict.pop("color_message", None)
    return event_dict
