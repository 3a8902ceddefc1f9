"""What a step computed for one chunk. Torch-free: plain numbers, ready for the queue."""

from dataclasses import dataclass, field

from engine.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """`token_ids` are set when the chunk reached the sequence's last token: what was sampled behind
    it. There is more than one where drafts were right: all but the last are the first drafts.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, if asked for
    # one for each of the chunk's positions whose next token belongs to the prompt, if asked for
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    failed: bool = False  # NaN or Inf in this sequence's logits
