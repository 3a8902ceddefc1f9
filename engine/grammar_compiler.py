"""Compiles grammars beside the step loop, within limits of time and memory. Torch-free.

Each thread has a process of its own (engine/grammar_process.py), which is the one to suffer from a
grammar that nobody can compile; what it could compile is compiled once more here, where it is used.
Used by engine/core.py.
"""

import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Protocol

import msgspec
from llguidance import LLTokenizer

from engine.errors import CheckpointError
from engine.grammar import (
    CompiledGrammar,
    GrammarError,
    compile_grammar,
    ends_of,
    make_tokenizer,
)
from engine.grammar_closing import Spelling
from engine.grammar_process import COMPILE_S, Setup
from engine.messages import Grammar
from engine.token_bytes import TokenBytes

_NUM_THREADS = 2  # so that one grammar at its limits does not hold up the next
_MAX_CACHED = 64
_START_S = 60.0
_STACK_BYTES = 16 << 20  # what the processes can do in less does not overflow here


class Grammars(Protocol):
    """What the engine needs of a compiler."""

    def compile(self, grammar: Grammar) -> "Future[CompiledGrammar]":
        """Begin, or look up; the future's exception is a GrammarError."""
        ...

    def start(self) -> None:
        """Get ready ahead of the first grammar."""
        ...

    def close(self) -> None:
        """End the threads and their processes."""
        ...


class GrammarCompiler:
    """Implements Grammars. Nothing is started before it is needed or `start` is called."""

    def __init__(
        self,
        read_tokens: Callable[[], TokenBytes],
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """`read_tokens` may raise CheckpointError: then no grammar can be compiled."""
        self._read_tokens = read_tokens
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()
        self._executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._vocabulary: tuple[LLTokenizer, Spelling, bytes] | None = None
        self._children: dict[int, _Child] = {}  # thread -> its process
        self._is_closed = False

    def start(self) -> None:
        self._submit(self._warm_up)

    def compile(self, grammar: Grammar) -> "Future[CompiledGrammar]":
        key = msgspec.structs.replace(grammar, origin="")
        future = self._cache.get(key)
        if future is None or _was_accident(future):
            future = self._cache[key] = self._submit(self._compile, key)
        self._cache.move_to_end(key)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return future

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for child in self._children.values():
                child.kill()
        self._executor.shutdown(cancel_futures=True)
        for child in self._children.values():
            child.close()

    def _submit(
        self, function: "Callable[..., CompiledGrammar]", *args: Grammar
    ) -> "Future[CompiledGrammar]":
        stack_bytes = threading.stack_size(_STACK_BYTES)  # of the thread that this may start
        try:
            return self._executor.submit(function, *args)
        finally:
            threading.stack_size(stack_bytes)

    def _warm_up(self) -> CompiledGrammar:
        return self._compile(Grammar(kind="json_object"))

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        try:
            tokenizer, spelling, setup = self._get_vocabulary()
        except CheckpointError as exc:
            raise GrammarError(f"this model does not take one: {exc}") from exc
        problem = self._child(setup).problem_of(grammar)
        if problem is not None:
            raise GrammarError(problem)
        return CompiledGrammar(compile_grammar(tokenizer, grammar), spelling, ends_of(grammar))

    def _get_vocabulary(self) -> tuple[LLTokenizer, Spelling, bytes]:
        with self._lock:
            if self._vocabulary is None:
                tokens = self._read_tokens()
                setup = Setup(tokens, self._vocab_size, self._eos_token_ids)
                tokenizer = make_tokenizer(tokens, self._vocab_size, self._eos_token_ids)
                spelling = Spelling(tokens, self._vocab_size, self._eos_token_ids)
                self._vocabulary = tokenizer, spelling, msgspec.msgpack.encode(setup)
            return self._vocabulary

    def _child(self, setup: bytes) -> "_Child":
        """This thread's process, a new one where there is none or the last grammar ended it."""
        thread_id = threading.get_ident()
        with self._lock:
            child = self._children.get(thread_id)
            if child is not None and child.is_alive:
                return child
            if child is not None:
                child.close()
            if self._is_closed:
                raise Abandoned("The engine is stopping.")
            self._children[thread_id] = child = _Child()
        child.start(setup)
        return child


class Abandoned(Exception):
    """A grammar that was not compiled for no fault of its own."""


def _was_accident(future: "Future[CompiledGrammar]") -> bool:
    if not future.done():
        return False
    return future.cancelled() or not isinstance(future.exception(), GrammarError | None)


class _Child:
    """One process. Used by one thread, but for `kill`."""

    def __init__(self) -> None:
        self._connection: Connection
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: a folder named engine/ where the user stands is not ours
            [sys.executable, "-P", "-m", "engine.grammar_process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self, setup: bytes) -> None:
        try:
            self._connection.send_bytes(setup)
            if self._connection.poll(_START_S):
                self._connection.recv_bytes()
                return
        except (EOFError, OSError) as exc:
            raise Abandoned("The process that compiles grammars does not start.") from exc
        self.kill()
        raise Abandoned("The process that compiles grammars does not start.")

    def problem_of(self, grammar: Grammar) -> str | None:
        """Why the grammar cannot be compiled; afterwards the process may be dead."""
        try:
            self._connection.send_bytes(msgspec.msgpack.encode(grammar))
            if self._connection.poll(COMPILE_S + _START_S):
                answer: str | None = msgspec.msgpack.decode(self._connection.recv_bytes())
                return answer
        except (EOFError, OSError):
            pass
        else:
            self.kill()
        if self._process.wait() in (-signal.SIGALRM, -signal.SIGKILL):
            return f"it takes more than {COMPILE_S:g} seconds to compile."
        return "it is nested too deeply, or takes too much memory to compile."

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
