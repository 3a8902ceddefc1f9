"""Grammars that constrain an output, on the llguidance library. Torch-free.

Owns what each kind of grammar means and the limits of its cost, and the state of one sequence. The
masks are put on logits by engine/grammar_masks.py; docs/decisions/0009-llguidance.md has why this
library. Compiling can take a process down (engine/grammar_compiler.py), so only what
engine/grammar_process.py has compiled before is compiled here.
"""

import json
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from engine.grammar_closing import Closing, Spelling
from engine.messages import Grammar, Progress, Thinking
from engine.token_bytes import TokenBytes

MAX_TEXT_BYTES = 256 * 1024

# What computing masks may cost a sequence: more than this for a start and then for each token, and
# it ends. A typical mask takes a tenth of a millisecond, the slowest the library allows a few.
_MASK_S = 0.5
_MASK_S_PER_TOKEN = 0.02

# Between two tokens of JSON: blanks, or one line break and its indentation. Without a limit a model
# can go on with white space until it has used up its tokens.
_JSON_WHITESPACE = r"[ \t]{0,2}|\r?\n[ \t]{0,40}"

_OURS = "at 1(8): "  # a place in the Lark that we have written
_MAX_REASON = 400  # characters of the library's message
_ANY_OBJECT = '{"type": "object"}'

# Or the library allows only its own spelling in tokens where the next text is certain.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class GrammarError(Exception):
    """A grammar that cannot be used; the message says what is wrong, and where."""


def make_tokenizer(
    token_bytes: TokenBytes, vocab_size: int, eos_token_ids: Items[int]
) -> LLTokenizer:
    """The library's view of the vocabulary; half a second for 150,000 tokens."""
    tokens = token_bytes.tokens[:vocab_size]
    source = _TokenSource(
        tokens + [b""] * (vocab_size - len(tokens)),
        [i for i in token_bytes.special_ids if i < vocab_size],
        eos_token_ids,
    )
    return LLTokenizer(
        TokenizerWrapper(source), n_vocab=vocab_size, eos_token=list(eos_token_ids) or None
    )


class _TokenSource:
    """What the library reads a vocabulary from."""

    def __init__(
        self, tokens: list[bytes], special_ids: list[int], eos_token_ids: Items[int]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.bos_token_id = None
        # without one the library wants one all the same: an id that no text has
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else len(tokens) - 1

    def __call__(self, text: bytes) -> list[int]:
        return []  # asked for where the next text is certain, which _OPTIONS turns off


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at its beginning, with its first mask computed. Raises GrammarError."""
    if len(grammar.text.encode()) > MAX_TEXT_BYTES:
        raise GrammarError(f"it is longer than {MAX_TEXT_BYTES} bytes.")
    limits = LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, _source(grammar), limits=limits, log_level=0)
    if not matcher.is_error():
        matcher.deep_copy().compute_bitmask()
        matcher.compute_bitmask()
    if matcher.is_error():
        reason = _reason(matcher)
        raise GrammarError(reason if grammar.kind == "lark" else reason.removeprefix(_OURS))
    return matcher


def _reason(matcher: LLMatcher) -> str:
    """The library's message without the lines that quote the grammar."""
    lines = matcher.get_error().splitlines() or ["unknown error"]
    details = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    head = lines[0].replace("failed to compile JSON schema: ", "")
    return f"{' '.join([head, *details])[:_MAX_REASON].rstrip('.')}."


def ends_of(grammar: Grammar) -> tuple[str, ...]:
    """The texts that end something in a grammar, with the one that ends thinking."""
    closing = None if grammar.thinking is None else grammar.thinking.closing
    return (*grammar.ends, *([closing] if isinstance(closing, str) else []))


def _source(grammar: Grammar) -> str:
    """The grammar as the library reads it: Lark, the answer by itself behind any thinking."""
    answer = {"lark_grammar": _lark(grammar) + _OPTIONS}
    if grammar.thinking is None:
        return json.dumps({"grammars": [answer]})
    first = {"lark_grammar": _thinking_lark(grammar.thinking) + _OPTIONS}
    return json.dumps({"grammars": [first, {"name": "answer", **answer}]})


def _lark(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            return f"start: %json {_with_options(grammar.text)}"
        case "json_object":
            return f"start: %json {_with_options(_ANY_OBJECT)}"
        case "regex":
            return f"start: /{regex_to_lark(grammar.text, '')}/"
        case "choice":
            return "start: " + " | ".join(_quoted(text) for text in _choices(grammar.text))
        case "lark":
            return grammar.text


def _with_options(schema_text: str) -> str:
    try:
        schema = json.loads(schema_text)
    except (ValueError, RecursionError) as exc:
        raise GrammarError(f"it is not JSON: {exc}.") from exc
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("it is not an object.")
    # "x-guidance" are options of the library: ours, not the client's
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _JSON_WHITESPACE}})


def _choices(text: str) -> list[str]:
    choices = json.loads(text)
    if not isinstance(choices, list) or not choices:
        raise GrammarError("it has no choices.")
    return [str(choice) for choice in choices]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _thinking_lark(thinking: Thinking) -> str:
    opening, closing = thinking.opening, thinking.closing
    if isinstance(closing, int):
        body = f"body <[{closing}]>\nbody: /(?s:.*)/"
    else:
        body = f"body\nbody[suffix={_quoted(closing)}]: /(?s:.*)/"
    whole, rule = body.split("\n")
    if thinking.is_open:
        return f"start: {whole} SPACE @answer\n{rule}\nSPACE: /[ \\n]*/"
    begin = f"<[{opening}]>" if isinstance(opening, int) else _quoted(opening)
    return f"start: ({begin} {whole} SPACE)? @answer\n{rule}\nSPACE: /[ \\n]*/"


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """What sequences share of a grammar; none changes it."""

    matcher: LLMatcher  # at its beginning
    spelling: Spelling
    ends: tuple[str, ...] = ()


class GrammarState:
    """How far one sequence is in its grammar: a function of its output's ids, and near the end of
    its tokens of how many are left.

    Attributes:
        problem: why it cannot go on, None while it can.
        closed_from: the place in the output from which on tokens are chosen so that it is complete
            when its tokens run out; None while it is free.
    """

    __slots__ = (
        "_ahead",
        "_ahead_s",
        "_closing",
        "_compiled",
        "_mask_s",
        "_matcher",
        "_num_consumed",
        "closed_from",
        "problem",
    )

    def __init__(self, compiled: CompiledGrammar) -> None:
        self.problem: str | None = None
        self.closed_from: int | None = None
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._closing = Closing(compiled.spelling, compiled.ends)
        self._num_consumed = 0
        self._mask_s = 0.0
        self._ahead = self._matcher  # behind drafts
        self._ahead_s: list[float] = []  # what the masks behind drafts took

    def update(self, output_ids: Items[int]) -> None:
        """Take in what was sampled since the last call; `output_ids` is the whole output."""
        self._consume(list(output_ids[self._num_consumed :]))

    def _consume(self, new_ids: list[int]) -> None:
        self._num_consumed += len(new_ids)
        if new_ids and self.problem is None and not self._matcher.consume_tokens(new_ids):
            self.problem = f"The output left its grammar: {_reason(self._matcher)}"

    def again(self, progress: Progress, max_tokens: int) -> "GrammarState":
        """A new state of the same grammar, after `progress`."""
        state = GrammarState(self._compiled)
        state.replay(progress, max_tokens)
        return state

    @property
    def is_complete(self) -> bool:
        """The output is what the grammar describes, and nothing may follow."""
        return self.problem is None and (self._matcher.is_stopped() or self._closing.is_over)

    @property
    def is_closed_early(self) -> bool:
        """The output was completed because its tokens ran out."""
        return self._closing.has_begun

    def vet(self, token_id: int, num_left: int) -> int:
        """The token to take when `token_id` was sampled and the output may get `num_left` more,
        so that it is complete when there are none.
        """
        if self.problem is not None:
            return token_id
        started_s = time.thread_time()
        token_id = self._closing.vet(self._matcher, token_id, num_left)
        self._mask_s += time.thread_time() - started_s
        if self.closed_from is None and self._closing.has_begun:
            self.closed_from = self._num_consumed
        return token_id

    def replay(self, progress: Progress, max_tokens: int) -> None:
        """Be as after `progress.token_ids`, each of which was vetted when it was sampled."""
        if progress.closed_from is not None and progress.closed_from < len(progress.token_ids):
            self.closed_from = progress.closed_from
        for place, token_id in enumerate(progress.token_ids):
            if place == self.closed_from:
                self._closing.replay_begin(self._matcher, max_tokens - place)
            else:
                self._closing.vet(self._matcher, token_id, max_tokens - place)
            self._consume([token_id])

    def mask(self) -> bytes:
        """One bit for each token id, the lowest first: whether it may come next.

        eos ids may where the output is complete. No bit is set once there is a problem.
        """
        started_s = time.thread_time()
        mask = self._matcher.compute_bitmask()
        self._mask_s += time.thread_time() - started_s
        if self._matcher.is_error():
            self.problem = f"The grammar cannot be followed further: {_reason(self._matcher)}"
        elif not any(mask):
            self.problem = "No token of this model can follow in the grammar."
        elif self._mask_s > _MASK_S + _MASK_S_PER_TOKEN * self._num_consumed:
            self.problem = "The grammar takes too long to follow."
        return mask if self.problem is None else bytes(len(mask))

    def num_draftable(self, drafts: Items[int]) -> int:
        """How many of `drafts` may be the next tokens without completing the output."""
        if self.problem is not None or self._closing.has_begun:
            return 0
        count = self._matcher.validate_tokens(list(drafts))
        ahead = self._matcher.deep_copy()
        if count and ahead.consume_tokens(list(drafts[:count])) and ahead.is_stopped():
            return count - 1
        return count

    def mask_behind(self, drafts: Items[int]) -> bytes:
        """`mask` as it will be where `drafts` come next. Call it with one of them, then with two
        and so on; `num_draftable` says how far that can go.
        """
        started_s = time.thread_time()
        if len(drafts) == 1:
            self._ahead, self._ahead_s = self._matcher.deep_copy(), []
        is_usable = self._ahead.consume_token(drafts[-1])
        mask = self._ahead.compute_bitmask()
        self._ahead_s.append(time.thread_time() - started_s)
        return mask if is_usable and not self._ahead.is_error() else bytes(len(mask))

    def take_draft(self, draft: int) -> None:
        """Take in the first of the drafts, or the one after the last that was taken: sampled."""
        self._matcher.consume_token(draft)
        self._num_consumed += 1
        self._mask_s += self._ahead_s.pop(0)
