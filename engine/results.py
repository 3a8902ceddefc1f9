"""What a step computed for one chunk. Torch-free: plain numbers, ready for the queue."""

from dataclasses import dataclass, field

from engine.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """`token_id` is set when the chunk reached the sequence's last token and a next one was
    sampled.
    """

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    # one for each of the chunk's positions whose next token belongs to the prompt, if asked for
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    failed: bool = False  # NaN or Inf in this sequence's logits
