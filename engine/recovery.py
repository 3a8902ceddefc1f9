"""What an engine does after a step that raised: the sequences of the step start again, and the one
that is the cause, if one is, ends alone. No torch.

A step that ran out of memory is retried with fewer tokens. After any other failure the sequences of
the step are computed one by one until each has got a token; one whose step fails then as well ends.
"""

from collections.abc import Sequence as ListLike

from engine.scheduler import Scheduler
from engine.sequence import Chunk, Sequence

_STEPS_UNTIL_LARGER = 100  # that succeed, before a step may have twice as many tokens again


class Recovery:
    """Decides for one scheduler.

    Attributes:
        num_failed_steps: since the start.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.num_failed_steps = 0
        self._scheduler = scheduler
        self._full_budget = scheduler.max_num_batched_tokens
        self._num_good_steps = 0

    def step_succeeded(self) -> None:
        """Let steps grow again, little by little."""
        if self._scheduler.max_num_batched_tokens == self._full_budget:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= _STEPS_UNTIL_LARGER:
            self._set_budget(2 * self._scheduler.max_num_batched_tokens)

    def step_failed(self, error: Exception, chunks: ListLike[Chunk]) -> list[Sequence]:
        """Queue the sequences of the step again; returns those that are to end in the error."""
        self.num_failed_steps += 1
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        if is_out_of_memory(error) and num_tokens > 1:
            self._set_budget(num_tokens // 2)
            self._requeue(chunks, are_suspect=False)
            return []
        guilty = [chunk.sequence for chunk in chunks if chunk.sequence.is_suspect]
        self._requeue([c for c in chunks if not c.sequence.is_suspect], are_suspect=True)
        return guilty

    def _requeue(self, chunks: ListLike[Chunk], *, are_suspect: bool) -> None:
        for chunk in chunks:
            chunk.sequence.forget_step()
            self._scheduler.requeue(chunk.sequence, is_suspect=are_suspect)

    def _set_budget(self, num_tokens: int) -> None:
        self._num_good_steps = 0
        self._scheduler.max_num_batched_tokens = max(1, min(num_tokens, self._full_budget))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host or a device had no memory left. torch has a type for CUDA alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
