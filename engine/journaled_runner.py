"""A runner whose steps are in the journal from their beginning until the engine's loop turns."""

from collections.abc import Sequence as ListLike

from engine.core import Runner
from engine.journal import Journal
from engine.redis_queue.frames import request_id_of
from engine.results import ChunkResult
from engine.sequence import Chunk


class JournaledRunner:
    """Hands everything on to `runner`."""

    def __init__(self, runner: Runner, journal: Journal) -> None:
        self._runner = runner
        self._journal = journal

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        """See engine.core.Runner."""
        sequences = [chunk.sequence for chunk in chunks]
        self._journal.begin(
            [(request_id_of(sequence.id), sequence.num_tokens) for sequence in sequences]
        )
        return self._runner.run(chunks)

    def rope_theta(self, num_prompt_tokens: int) -> float:
        """See engine.core.Runner."""
        return self._runner.rope_theta(num_prompt_tokens)

    def close(self) -> None:
        """See engine.core.Runner."""
        self._runner.close()
