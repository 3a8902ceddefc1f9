"""One token stream being generated: its tokens, how many of them the KV cache holds, and its
blocks. No torch.

Owned by the scheduler; the model runner and the sampler read it. There is no prefill or decode
state: a sequence simply has tokens that are not computed yet, one of them when it is decoding.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.messages import EngineRequest, Progress, SamplingParams, Timing, TokenLogprobs

if TYPE_CHECKING:
    from engine.grammar import GrammarState
    from engine.penalties import PenaltyState
    from engine.speculation.memory import Memory


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` is prompt + output; the first `num_computed_tokens` are in the KV cache."""

    request: EngineRequest
    arrival: int  # order of arrival, breaks ties between equal priorities
    # the base of its rotary embedding: of some models a function of the prompt's length
    rope_theta: float = 0.0
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    # a step that had it has failed: it is computed alone until it has got another token
    is_suspect: bool = False
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None  # prefix-cache hits at the first scheduling
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chained hash of each full block
    prompt_logprobs: list[TokenLogprobs | None] = field(
        default_factory=list
    )  # of computed positions
    penalties: "PenaltyState | None" = None  # kept here by the sampler between steps
    grammar: "GrammarState | None" = None  # set before the sequence is first scheduled
    num_draft_computed_tokens: int = 0  # those in the KV cache of a draft model
    speculation: "Memory | None" = None  # kept here by the speculator between steps
    arrived_s: float = field(default_factory=time.perf_counter)
    scheduled_s: float | None = None  # when it was first in a step, by the same clock

    def __post_init__(self) -> None:
        progress = self.request.progress
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.token_ids = [*self.request.prompt_token_ids, *(progress.token_ids if progress else ())]

    def timing(self) -> Timing | None:
        """What the first token took, called when it is there; None for a suspect's."""
        if self.scheduled_s is None:
            return None
        queue_s = self.scheduled_s - self.arrived_s
        return Timing(queue_s, time.perf_counter() - self.scheduled_s)

    def forget_step(self) -> None:
        """Drop what a failed step may have left in the state that collaborators keep here."""
        self.penalties = self.speculation = None
        if self.grammar is not None:
            progress = Progress(self.output_ids, self.grammar.closed_from)
            self.grammar = self.grammar.again(progress, self.sampling.max_tokens)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def cache_key(self) -> bytes:
        """What its K/V depends on beside its tokens: blocks are only shared where this is equal."""
        return f"{self.rope_theta}:{self.request.cache_salt}".encode()

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True, slots=True)
class DraftedSequence:
    """A sequence as if `drafts` were its next tokens: how the sampler sees the position behind
    them.
    """

    sequence: Sequence
    drafts: tuple[int, ...]

    @property
    def sampling(self) -> SamplingParams:
        return self.sequence.request.sampling

    @property
    def grammar(self) -> "GrammarState | None":
        return self.sequence.grammar

    @property
    def num_tokens(self) -> int:
        return self.sequence.num_tokens + len(self.drafts)

    @property
    def num_output_tokens(self) -> int:
        return self.sequence.num_output_tokens + len(self.drafts)


Sampled = Sequence | DraftedSequence  # what a row of logits is sampled for


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a sequence computed in one step: `num_tokens` tokens from `start`, all in one
    forward pass. The last of them may be `drafts`: guesses of what follows the sequence's tokens.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether this chunk reaches the sequence's last token, so that a next token is sampled."""
        return self.end - len(self.drafts) == self.sequence.num_tokens

    @property
    def token_ids(self) -> list[int]:
        if not self.drafts:
            return self.sequence.token_ids[self.start : self.end]
        num_known = self.sequence.num_tokens
        drafts = self.drafts[max(0, self.start - num_known) :]
        return [*self.sequence.token_ids[self.start :], *drafts]

    def with_drafts(self, drafts: tuple[int, ...]) -> "Chunk":
        """This chunk, which has none, with drafts behind it."""
        return Chunk(self.sequence, self.start, self.num_tokens + len(drafts), drafts)
