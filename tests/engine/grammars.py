"""A vocabulary of single bytes for the grammars of tests, compiled in this process at once."""

from concurrent.futures import Future

from engine.grammar import (
    CompiledGrammar,
    GrammarError,
    GrammarState,
    compile_grammar,
    ends_of,
    make_tokenizer,
)
from engine.grammar_closing import Spelling
from engine.messages import Grammar
from engine.token_bytes import TokenBytes

# ids below 256 are bytes; a few longer tokens, so that one text has several spellings
WORDS = (b'{"', b'":', b'"}', b"true", b" \n", "é".encode(), b"ab", b"aba")
EOS, CONTROL = 256 + len(WORDS), 257 + len(WORDS)
VOCAB_SIZE = CONTROL + 3  # the last two ids are no tokens
TOKEN_BYTES = TokenBytes(
    [*(bytes([i]) for i in range(256)), *WORDS, b"<|end|>", b"<|x|>"], [EOS, CONTROL]
)
TOKENIZER = make_tokenizer(TOKEN_BYTES, VOCAB_SIZE, [EOS])


SPELLING = Spelling(TOKEN_BYTES, VOCAB_SIZE, [EOS])


def compiled(grammar: Grammar) -> CompiledGrammar:
    return CompiledGrammar(compile_grammar(TOKENIZER, grammar), SPELLING, ends_of(grammar))


def text_of(ids: list[int]) -> str:
    return b"".join(TOKEN_BYTES.tokens[i] for i in ids).decode()


def ids_of(text: str) -> list[int]:
    return list(text.encode())


def state_of(grammar: Grammar, output: list[int] | None = None) -> GrammarState:
    state = GrammarState(compiled(grammar))
    state.update(output or [])
    return state


def allowed(state: GrammarState) -> set[int]:
    mask = state.mask()
    return {i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1}


def follows(grammar: Grammar, text: str) -> bool:
    """Whether each byte of the text is allowed, and the end behind it."""
    state = state_of(grammar)
    ids = ids_of(text)
    for position, token_id in enumerate(ids):
        state.update(ids[:position])
        if token_id not in allowed(state):
            return False
    state.update(ids)
    return state.is_complete or EOS in allowed(state)


class InlineGrammars:
    """A Grammars that compiles where it is asked to, or when `finish` is called."""

    def __init__(self, *, is_lazy: bool = False) -> None:
        self.is_lazy = is_lazy
        self.num_compiled = 0
        self._open: list[tuple[Grammar, Future[CompiledGrammar]]] = []

    def compile(self, grammar: Grammar) -> "Future[CompiledGrammar]":
        future: Future[CompiledGrammar] = Future()
        self._open.append((grammar, future))
        if not self.is_lazy:
            self.finish()
        return future

    def finish(self) -> None:
        for grammar, future in self._open:
            self.num_compiled += 1
            try:
                future.set_result(compiled(grammar))
            except GrammarError as exc:
                future.set_exception(exc)
        self._open.clear()

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass
