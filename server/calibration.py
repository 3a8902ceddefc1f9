"""The texts that quantization is calibrated with: read, checked and turned into token ids.

The shipped ones (server/calibration.jsonl: English, Chinese and code, written for this project) or
a user's file, one JSON object a line: {"messages": [...]} as in a chat request, or {"text": "..."}.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field

from protocol.chat_messages import Message
from protocol.errors import ApiError
from protocol.prompt import TemplateError
from protocol.sampling import RequestModel
from protocol.validation import parse
from server.prompts import template_message
from server.served_model import ModelText


class CalibrationError(Exception):
    """A file that cannot be used; the message is one line that names the file and the line."""


class Sample(RequestModel):
    """One line: one of the two."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    text: Annotated[str, Field(min_length=1)] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A sample and where it stands."""

    sample: Sample
    where: str  # "line 3 of texts.jsonl"


def read_samples(path: Path | None) -> list[Line]:
    """The samples of a file, or the shipped ones. Raises CalibrationError."""
    name = "calibration.jsonl" if path is None else str(path)
    try:
        source = files("server").joinpath(name) if path is None else path
        content = source.read_text(encoding="utf-8")
    except OSError as exc:
        raise CalibrationError(f"{name} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise CalibrationError(f"{name} is not UTF-8 text") from exc
    # not splitlines(): JSON may hold line separators of Unicode as they are
    numbered = enumerate(content.split("\n"), start=1)
    lines = [_line(text, f"line {i} of {name}") for i, text in numbered if text.strip()]
    if not lines:
        raise CalibrationError(f"{name} has no lines")
    return lines


def _line(text: str, where: str) -> Line:
    try:
        sample, _ = parse(Sample, text.encode())
    except ApiError as exc:
        # the hint about HTTP libraries is for clients
        reason = "it is not valid JSON" if exc.param is None and exc.code is None else str(exc)
        raise CalibrationError(f"{where}: {reason}") from exc
    if (sample.messages is None) == (sample.text is None):
        raise CalibrationError(f"{where}: it needs either 'messages' or 'text'")
    return Line(sample, where)


def encode_samples(
    lines: Iterable[Line], model: ModelText, *, max_length: int, skips_refused: bool
) -> list[list[int]]:
    """Token ids of each sample, cut to `max_length`: conversations as the model's prompts have
    them, or as plain text where it is no chat model.

    `skips_refused` leaves out conversations that the chat template refuses (some take no system
    message). Raises CalibrationError on these otherwise, and where nothing is left.
    """
    encoded = []
    for line in lines:
        try:
            token_ids = _encode(line.sample, model)[:max_length]
        except (TemplateError, ValueError) as exc:
            if skips_refused:
                continue
            raise CalibrationError(f"{line.where}: {exc}") from exc
        if token_ids:
            encoded.append(token_ids)
    if not encoded:
        raise CalibrationError("the model's chat template refuses every conversation")
    return encoded


def _encode(sample: Sample, model: ModelText) -> list[int]:
    if sample.messages is not None and model.chat_template is not None:
        messages = [template_message(message) for message in sample.messages]
        return model.chat_template.encode(messages, add_generation_prompt=False)
    text = sample.text or "\n\n".join(message.text for message in sample.messages or ())
    return [*model.tokenizer.prompt_prefix, *model.tokenizer.encode(text, parse_special=False)]
