"""Compiles grammars to see whether they can be: `python -m engine.grammar_process FD`.

Started by engine/grammar_compiler.py, one for each of its threads. A schema of a few kilobytes can
take minutes, gigabytes or the whole stack to compile, and none of that can be stopped within a
process. So each is compiled here first: where it takes too long the alarm ends this process, where
it takes too much the system does, and the engine goes on. Needs no torch.
"""

import contextlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from llguidance import LLTokenizer

from engine.grammar import GrammarError, compile_grammar, make_tokenizer
from engine.messages import Grammar
from engine.token_bytes import TokenBytes

COMPILE_S = 2.0
_MEMORY_BYTES = 512 << 20  # of one grammar
_STACK_BYTES = 2 << 20  # less than the engine's threads have
_SEARCH_S = 0.3  # for the place of an error
_SHARED = ("$defs", "definitions", "x-guidance")  # what the parts of a schema need of it
_AT_JSON = "at 1(8): "  # the place in the Lark that is written here
# with what it belongs to, and its place there
_SCHEMA = re.compile(r"^// (.+) (\[.*\])\n\w+: %json (.+)$", re.MULTILINE)
_NICENESS = 10


class Setup(msgspec.Struct, frozen=True):
    """What the parent sends first."""

    token_bytes: TokenBytes
    vocab_size: int
    eos_token_ids: list[int]


def problem_of(tokenizer: LLTokenizer, grammar: Grammar) -> str | None:
    """Why a grammar cannot be compiled, None where it can."""
    try:
        compile_grammar(tokenizer, grammar)
    except GrammarError as exc:
        if grammar.kind == "json_schema":
            return _with_place(tokenizer, grammar.text, str(exc))
        if grammar.kind == "lark":
            return _with_schema(tokenizer, grammar.text, str(exc))
        return str(exc)
    return None


def _with_schema(tokenizer: LLTokenizer, lark: str, problem: str) -> str:
    """Find the schema of a grammar that has the problem, and say what its comment calls it."""
    for owner, place, schema_text in _SCHEMA.findall(lark):
        found = _schema_problem(tokenizer, schema_text)
        if found is not None:
            return (
                f"{owner}: {_with_place(tokenizer, schema_text, found, tuple(json.loads(place)))}"
            )
    return problem


def _schema_problem(tokenizer: LLTokenizer, schema_text: str) -> str | None:
    """By the options that the schema has with it in a grammar."""
    try:
        compile_grammar(tokenizer, Grammar(kind="lark", text=f"start: %json {schema_text}"))
    except GrammarError as exc:
        return str(exc).removeprefix(_AT_JSON)
    return None


def _with_place(
    tokenizer: LLTokenizer, schema_text: str, problem: str, path: tuple[str, ...] = ()
) -> str:
    """Put before the problem the innermost part of the schema that has it, as OpenAI does.

    `path`: of the schema in the one that the client knows.
    """
    try:
        schema = json.loads(schema_text)
    except (ValueError, RecursionError):
        return problem
    if not isinstance(schema, dict):
        return problem
    deadline_s = time.monotonic() + _SEARCH_S
    shared = {key: schema[key] for key in _SHARED if key in schema}
    found: tuple[tuple[str, ...], dict[str, Any], str] | None = ((), schema, problem)
    while found is not None:
        path, schema, problem = (*path, *found[0]), found[1], found[2]
        found = None
        for step, part in _parts(schema):
            inner = _schema_problem(tokenizer, json.dumps({**shared, **part}))
            if inner is not None:
                found = step, part, inner
            if found is not None or time.monotonic() > deadline_s:
                break
    return f"In context={path!r}, {problem}"


def _parts(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The schemas that a schema is made of, with the keys that lead there."""
    for key, value in schema.items():
        if key in ("const", "enum", "default", "examples", "x-guidance"):
            continue
        if isinstance(value, list):
            yield from (((key, str(i)), v) for i, v in enumerate(value) if isinstance(v, dict))
        elif isinstance(value, dict) and key in _NAMED:
            yield from (((key, name), v) for name, v in value.items() if isinstance(v, dict))
        elif isinstance(value, dict):
            yield (key,), value


_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def main() -> None:
    """Answer one grammar after another until the parent has closed its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent decides
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(int(sys.argv[1]))
    setup = msgspec.msgpack.decode(connection.recv_bytes(), type=Setup)
    tokenizer = make_tokenizer(setup.token_bytes, setup.vocab_size, setup.eos_token_ids)
    del setup
    _limit_memory()
    threading.stack_size(_STACK_BYTES)
    connection.send_bytes(b"ready")
    decoder = msgspec.msgpack.Decoder(Grammar)
    while True:
        try:
            grammar = decoder.decode(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(_answer(tokenizer, grammar))


def _answer(tokenizer: LLTokenizer, grammar: Grammar) -> bytes:
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(problem_of(tokenizer, grammar)))
    signal.setitimer(signal.ITIMER_REAL, COMPILE_S)  # the alarm ends the process
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not answers:  # the thread raised: the library gave up in a way of its own
        sys.exit(1)
    return msgspec.msgpack.encode(answers[0])


def _limit_memory() -> None:
    """Give what is compiled from here on its own share of the address space."""
    try:
        with open("/proc/self/statm") as file:
            used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return
    limit = used_bytes + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
