"""Log-probabilities of given tokens and of the most likely ones, of the model's own distribution.

Called by the sampler for the token it has sampled and by the model runner for prompt tokens. Works
in slices of rows, so that a long prompt over a large vocabulary needs little memory.
"""

import torch

from engine.messages import TokenLogprobs
from engine.top_tokens import largest

_SLICE_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}  # logits of one slice: the CPU's cache, 256 MiB
_TIE_ROOM = (
    16  # how many tokens beyond the last one wanted are fetched to see which ids tie with it
)


def prompt_logprobs(
    logits: torch.Tensor,
    token_ids: list[int],
    num_top: int,
    num_valid_tokens: int | None = None,
) -> list[TokenLogprobs]:
    """Return the logprobs of `token_ids`, one predicted by each row of `logits` (n, vocab).

    `logits` are float32. `top` holds the `num_top` most likely tokens, a tie in order of id. Ids
    from `num_valid_tokens` on (rows that pad the vocabulary) are never in `top`, but their mass
    counts, as it does in transformers.
    Raises ValueError when there is not one token per row.
    """
    num_rows, vocab_size = logits.shape
    if len(token_ids) != num_rows:
        raise ValueError(f"{len(token_ids)} tokens for {num_rows} rows of logits")
    num_top = min(num_top, num_valid_tokens or vocab_size)
    step = max(1, _SLICE_ELEMENTS[logits.device.type] // vocab_size)
    result: list[TokenLogprobs] = []
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        result += _slice_logprobs(logits[rows], token_ids[rows], num_top, num_valid_tokens)
    return result


def _slice_logprobs(
    logits: torch.Tensor, token_ids: list[int], num_top: int, num_valid_tokens: int | None
) -> list[TokenLogprobs]:
    chosen = torch.tensor(token_ids, device=logits.device).unsqueeze(-1)  # (n, 1)
    logprobs = logits.log_softmax(-1)
    ids = torch.cat([chosen, most_likely(logits[:, :num_valid_tokens], num_top)], dim=-1)
    rows = zip(ids.tolist(), logprobs.gather(-1, ids).tolist(), strict=True)
    return [
        TokenLogprobs(row_ids[0], values[0], list(zip(row_ids[1:], values[1:], strict=True)))
        for row_ids, values in rows
    ]


def most_likely(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return ids (n, count) of the largest of each row of `logits` (n, vocab), ties in id order."""
    vocab_size = logits.shape[-1]
    if count == 0:
        return torch.empty((logits.shape[0], 0), dtype=torch.int64, device=logits.device)
    fetched = min(count + _TIE_ROOM, vocab_size)
    values, ids = largest(logits, fetched)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_value)[:, :count]
    # where a tie goes on past what was fetched, ids that belong here may be missing
    tied = values[:, -1] == values[:, count - 1]
    if fetched < vocab_size and bool(tied.any()):
        ids[tied] = logits[tied].sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return ids
