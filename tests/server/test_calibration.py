"""server/calibration.py: files of samples, their errors, and their token ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.prompt import ChatTemplate
from server.calibration import CalibrationError, encode_samples, read_samples
from server.served_model import ModelText
from tests.server.small_app import TEMPLATE, byte_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes<|end|>"}]


def model(template: str | None = TEMPLATE, *, add_bos_token: bool = False) -> ModelText:
    tokenizer = byte_tokenizer(add_bos_token=add_bos_token)
    return ModelText(tokenizer, None if template is None else ChatTemplate(template, tokenizer))


def file_of(folder: Path, *lines: Any) -> Path:
    path = folder / "texts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def encode(path: Path | None, text: ModelText, **options: Any) -> list[list[int]]:
    given: dict[str, Any] = {"max_length": 10_000, "skips_refused": path is None} | options
    return encode_samples(read_samples(path), text, **given)


def test_conversations_are_rendered_by_the_chat_template(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"messages": CHAT}, "", {"text": "plain"})
    text = model()
    chat, plain = encode(path, text)
    decoded = text.tokenizer.decode(chat, skip_special=False)
    assert decoded == "user:hi<|end|>assistant:yes<|end|><|end|>"
    assert chat.count(256) == 2  # the words of a message are no control token
    assert text.tokenizer.decode(plain) == "plain"
    assert [len(ids) for ids in encode(path, text, max_length=4)] == [4, 4]


def test_a_base_model_gets_plain_text(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"messages": CHAT})
    text = model(None, add_bos_token=True)
    (ids,) = encode(path, text)
    assert text.tokenizer.decode(ids, skip_special=False) == "<s>hi\n\nyes<|end|>"
    assert ids[0] == 257 and 256 not in ids


def test_the_shipped_conversations() -> None:
    """English, Chinese and code, with and without a system message."""
    lines = read_samples(None)
    conversations = [line.sample.messages or [] for line in lines]
    assert 64 <= len(conversations) <= 128
    texts = ["\n".join(message.text for message in messages) for messages in conversations]
    assert len(set(texts)) == len(texts)
    assert sum(any("\u4e00" <= c <= "\u9fff" for c in text) for text in texts) >= 20
    assert sum("```" in text for text in texts) >= 12
    assert 8 <= sum(messages[0].role == "system" for messages in conversations) <= 30
    for messages in conversations:
        roles = [message.role for message in messages if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert len(encode(None, model())) == len(lines)


def test_conversations_that_a_template_refuses(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + TEMPLATE
    )
    assert 40 <= len(encode(None, model(template))) < len(read_samples(None))
    path = file_of(tmp_path, {"messages": [{"role": "system", "content": "x"}]})
    with pytest.raises(CalibrationError, match=r"^line 1 of .*texts\.jsonl: no system"):
        encode(path, model(template))
    with pytest.raises(CalibrationError, match="refuses every conversation"):
        encode(None, model("{{ raise_exception('never') }}"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 of .*: it is not valid JSON"),
        ("[1]", "line 2 of .*: Invalid body: expected an object"),
        ({"messages": []}, "line 2 of .*: Invalid 'messages': empty array"),
        ({"messages": [{"role": "x"}]}, r"line 2 of .*'x'"),
        ({"messages": [{"role": "user"}]}, "line 2 of .*: Missing .*'content'"),
        ({"text": 3}, "line 2 of .*: Invalid type for 'text'"),
        ({"prompt": "a"}, "line 2 of .*: Unknown parameter: 'prompt'"),
        ({}, "line 2 of .*: it needs either"),
        ({"text": "a", "messages": CHAT}, "line 2 of .*: it needs either"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: Any, problem: str) -> None:
    path = file_of(tmp_path, {"text": "good"}, line)
    with pytest.raises(CalibrationError, match=problem):
        read_samples(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No such file"):
        read_samples(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(CalibrationError, match="has no lines"):
        read_samples(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(CalibrationError, match="is not UTF-8"):
        read_samples(tmp_path / "latin.jsonl")
