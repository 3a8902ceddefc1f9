"""What crosses the queue between a server and an engine: frozen structs, ids and never text.

Torch-free, imported by both sides. The engine never sees a string of the client's; the server
never sees a tensor.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
FaultCode = Literal[
    "context_length_exceeded",  # the prompt alone fills the model's context
    "kv_cache_exceeded",  # the prompt can never fit into the whole KV cache
    "invalid_request",  # a token id outside the vocabulary, an empty prompt, ...
    "invalid_grammar",  # a grammar that does not compile or takes too much time or memory
    "numerical_error",  # NaN or Inf in this sequence's logits
    "engine_dead",  # the engine process died or stopped answering
    "internal",
]


# of EngineStats.step_sizes
STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Per-request sampling numbers, already resolved.

    The server has applied the defaults, drawn a seed and checked the ranges.
    """

    max_tokens: int  # >= 0; 0 computes the prompt only (echo with logprobs)
    seed: int = 0  # 0 <= seed < 2**64; noise is a function of (seed, position) only
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 = off
    min_p: float = 0.0  # [0, 1]
    repetition_penalty: float = 1.0  # > 0, over prompt and output (CTRL, arXiv:1909.05858)
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0  # no stop token before this many output tokens
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()  # in addition to the model's own eos ids
    logprobs: int | None = (
        None  # None = off; k in 0..20 = k most likely tokens beside the sampled one
    )
    prompt_logprobs: int | None = None  # the same for every prompt position


class Thinking(msgspec.Struct, frozen=True):
    """What a model may think before its answer: an opening, any text, a closing."""

    opening: str | int  # a text, or the id of a control token
    closing: str | int
    is_open: bool  # the prompt has opened it: the output must close it


GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the whole output of a sequence must be; what leads elsewhere is never sampled."""

    kind: GrammarKind
    # the JSON schema, the regular expression, a JSON array of strings, or the Lark grammar
    text: str = ""
    thinking: Thinking | None = None  # may come first
    # texts that end something in it, for an output that has to be completed in a hurry
    ends: tuple[str, ...] = ()
    origin: str = ""  # where the API request has it: carried for the server's error messages


class Progress(msgspec.Struct, frozen=True):
    """How far a sequence had come when its engine was lost: another goes on behind it."""

    token_ids: list[int]  # its output
    closed_from: int | None = None  # see TokenEvent


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="add"):
    """One sequence to generate. n choices of an API request are n of these, each with its id."""

    id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    grammar: Grammar | None = None
    priority: int = 0  # lower is served first
    cache_salt: str = ""  # sequences share prefix-cache blocks only within one salt
    progress: Progress | None = None  # events are of what follows it


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    id: str


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A client's first message; answered with EngineInfo, and EngineStats from then on."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities (natural log) at one position, before any sampling parameter is applied."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # (token id, logprob), most likely first


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """How long a sequence took to its first token, in seconds of the engine that computed it."""

    queue_s: float  # from its arrival to the first step that computed some of it
    prefill_s: float  # from that to the first token


class TokenEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag="token"):
    """New output tokens of one sequence. A stop token is never among them: Finished carries it."""

    id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids
    # once, with or before the first token: None for position 0, then one for each prompt token
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    # from which place in the output on tokens were chosen to complete its grammar in time
    closed_from: int | None = None
    timing: Timing | None = None  # once, with the first token


class Fault(msgspec.Struct, frozen=True):
    code: FaultCode
    message: str


class Finished(msgspec.Struct, frozen=True, omit_defaults=True, tag="finished"):
    """The one terminal event of a sequence."""

    id: str
    reason: FinishReason
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache when first scheduled
    num_output_tokens: int = 0  # the stop token and those before a resumption included
    stop_token_id: int | None = None
    fault: Fault | None = None  # set exactly when reason is "error"


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag="info"):
    """What a loaded engine is; sent once to each client."""

    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    backend: str


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """A snapshot, sent at least once a second between steps; counters run from the start."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # free or only kept for the prefix cache
    num_steps: int = 0
    num_restarts: int = 0  # engines before this one
    num_finished: int = 0  # sequences that have ended, in whatever way
    num_failed_steps: int = 0  # that raised; their sequences started again
    num_preemptions: int = 0
    prompt_tokens: int = 0  # computed, cache hits not counted
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # of those, found
    num_draft_tokens: int = 0  # guessed by speculation and verified
    num_accepted_tokens: int = 0  # of those, right
    # steps by the smallest of STEP_TOKEN_BOUNDS that their tokens do not exceed; last: none
    step_sizes: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)
    num_step_tokens: int = 0  # computed in all steps, also those computed again
    step_time_s: float = 0.0  # of the last step
    model_time_s: float = 0.0  # of that, inside the model and sampler


Event = TokenEvent | Finished
ToEngine = EngineRequest | Abort | Hello
FromEngine = TokenEvent | Finished | EngineInfo | EngineStats
