"""What must not be drafted: tokens behind which nothing of the sequence is computed.

Drafts end before whatever may end a sequence (a stop token, its limit of tokens, its completed
grammar). So where drafts are right, only the last token that a step gives can be its end. No torch.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items

from engine.sequence import Sequence


class Ends:
    """Where the sequences of one engine end."""

    def __init__(self, eos_token_ids: Iterable[int], max_model_len: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_model_len = max_model_len

    def max_drafts(self, sequence: Sequence) -> int:
        """All that it may still get but one: that one is sampled."""
        left = min(
            sequence.sampling.max_tokens - sequence.num_output_tokens,
            self._max_model_len - sequence.num_tokens,
        )
        return max(0, left - 1)

    def before_stop(self, sequence: Sequence, drafts: Items[int]) -> Items[int]:
        """`drafts` up to the first that stops the sequence."""
        sampling = sequence.sampling
        for count, draft in enumerate(drafts):
            if draft in sampling.stop_token_ids:
                return drafts[:count]
            if draft in self._eos_token_ids and not sampling.ignore_eos:
                return drafts[:count]
        return drafts

    def within_grammar(self, sequence: Sequence, drafts: Items[int]) -> Items[int]:
        """`drafts` up to the first that its grammar does not allow, or that completes it."""
        grammar = sequence.grammar
        if grammar is None or not drafts:
            return drafts
        grammar.update(sequence.output_ids)
        return drafts[: grammar.num_draftable(drafts)]
