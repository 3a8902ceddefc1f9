"""The keys file: YAML that holds names, hashes, scopes and limits, and never a key itself.

Read by the server, written by `qwen-serve keys`. Every problem is a KeyFileError of one line.
"""

import fcntl
import os
import re
import secrets
import stat
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from server.keys import Key, Limits, Scope, digest_of

_HEADING = """\
# The API keys of qwen-serve: `qwen-serve keys` writes this file, docs/keys.md describes it.
# A server reads it again when it changes. `hash` is the SHA-256 of the key.
"""
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class KeyFileError(Exception):
    """The file cannot be read, or what is in it cannot be; the message is one line."""


class _Entry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A key as the file has it."""

    name: _Name
    hash: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrency: _Count | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[_Entry] = []


def read_keys(path: Path) -> list[Key]:
    """Return the keys in the file, in their order. Raises KeyFileError."""
    keys = [
        Key(
            name=entry.name,
            digest=bytes.fromhex(entry.hash.removeprefix("sha256:")),
            scopes=frozenset(entry.scopes),
            limits=Limits(
                requests_per_minute=entry.requests_per_minute,
                tokens_per_minute=entry.tokens_per_minute,
                concurrency=entry.concurrency,
            ),
        )
        for entry in _parse(path, _text_of(path)).keys
    ]
    for what, values in (
        ("name", [key.name for key in keys]),
        ("hash", [key.digest.hex() for key in keys]),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise KeyFileError(f"the keys file {path} has two keys of the {what} {twice[0]}")
    return keys


def add_key(path: Path, name: str, scopes: Sequence[Scope], limits: Limits) -> str:
    """Make a key, put its hash at the end of the file and return the key. Raises KeyFileError.

    What is in the file stays as it is. A file that does not exist is begun.
    """
    secret = f"sk-{secrets.token_urlsafe(32)}"
    added = {
        "name": name,
        "hash": f"sha256:{digest_of(secret.encode()).hex()}",
        "scopes": list(dict.fromkeys(scopes)),
        **msgspec.to_builtins(limits),
    }
    try:
        entry = msgspec.convert(added, _Entry)
    except msgspec.ValidationError as exc:
        raise KeyFileError(f"no such key can be: {exc}") from exc
    with _alone(path):
        text = _text_of(path) if path.exists() else _HEADING
        entries = _parse(path, text).keys
        if any(one.name == name for one in entries):
            raise KeyFileError(f"the keys file {path} has a key named {name}")
        if entries:
            _replace(path, _appended(text, entry), [*entries, entry])
        else:
            _rewrite(path, text, [entry])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises KeyFileError."""
    with _alone(path):
        text = _text_of(path)
        entries = _parse(path, text).keys
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            raise KeyFileError(f"the keys file {path} has no key named {name}")
        _rewrite(path, text, left)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One writer at a time, or of two one would lose the other's key."""
    try:
        # the folder's lock: the file itself is another one behind every change
        folder = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as exc:
        raise KeyFileError(f"the keys file {path} cannot be written: {exc.strerror}") from exc
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _text_of(path: Path) -> str:
    if path.suffix not in (".yaml", ".yml"):
        raise KeyFileError(f"the keys file {path} must end in .yaml or .yml")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise KeyFileError(f"the keys file {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise KeyFileError(f"the keys file {path} is not valid: {exc}") from exc


def _parse(path: Path, text: str) -> _File:
    parsed: Any = None
    try:
        parsed = yaml.safe_load(text)
        return msgspec.convert({} if parsed is None else parsed, _File)
    except yaml.YAMLError as exc:
        reason = " ".join(str(exc).split())
    except msgspec.ValidationError as exc:
        reason = _reason(exc, parsed.get("keys", []) if isinstance(parsed, dict) else [])
    raise KeyFileError(f"the keys file {path} is not valid: {reason}")


def _reason(error: msgspec.ValidationError, entries: Any) -> str:
    """msgspec's words, with the name of the entry that they are about."""
    text = str(error)
    match = re.search(r"`\$\.keys\[(\d+)\]", text)
    entry = entries[int(match[1])] if match else None
    name = entry.get("name") if isinstance(entry, dict) else None
    return f"{text} (the key {name!r})" if isinstance(name, str) else text


def _dump(entries: Sequence[_Entry]) -> str:
    return yaml.safe_dump(
        {"keys": msgspec.to_builtins(entries)}, sort_keys=False, default_flow_style=None
    )


def _appended(text: str, entry: _Entry) -> str:
    """`text` and one more item, as far to the right as those before."""
    item = _dump([entry]).partition("\n")[2]
    items = re.findall(r"^( *)- ", text, re.MULTILINE)
    indentation = items[-1] if items else ""
    return text.rstrip() + "\n" + textwrap.indent(item, indentation)


def _rewrite(path: Path, text: str, entries: Sequence[_Entry]) -> None:
    if "#" in text.replace(_HEADING, ""):
        raise KeyFileError(
            f"the keys file {path} has comments, which would be lost; change it with an editor"
        )
    _replace(path, _HEADING + _dump(entries), entries)


def _replace(path: Path, text: str, entries: Sequence[_Entry]) -> None:
    """Put `text` in the file's place at once: a server may read it at any moment."""
    try:
        is_understood = list(_parse(path, text).keys) == list(entries)
    except KeyFileError:
        is_understood = False
    if not is_understood:
        raise KeyFileError(
            f"the keys file {path} is written in a way that cannot be changed here; "
            "change it with an editor"
        )
    try:
        real = path.resolve()  # a link stays one
        mode = stat.S_IMODE(real.stat().st_mode) if real.exists() else 0o600
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=real.parent, prefix=f".{real.name}.", delete=False
        ) as file:
            file.write(text)
        os.chmod(file.name, mode)
        os.replace(file.name, real)
    except OSError as exc:
        raise KeyFileError(f"the keys file {path} cannot be written: {exc.strerror}") from exc
