"""A toy model that knows nothing: random logits over the vocabulary of tests/engine/grammars.py.

They are a function of the tokens before, so a sequence samples the same however it is scheduled.
"""

from collections.abc import Sequence as ListLike

import msgspec
import torch

from engine.core import Engine
from engine.grammar_compiler import Grammars
from engine.messages import EngineRequest, Grammar, SamplingParams
from engine.results import ChunkResult
from engine.sampler import Sampler
from engine.sequence import Chunk
from tests.engine.grammars import EOS, VOCAB_SIZE, InlineGrammars
from tests.engine.toy_runner import ToyRunner, prefix_hash, toy_engine


class RandomRunner(ToyRunner):
    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.sampler = Sampler(VOCAB_SIZE, [EOS])

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        results = super().run(chunks)
        rows = [i for i, chunk in enumerate(chunks) if chunk.samples]
        if not rows:
            return results
        sequences = [chunks[i].sequence for i in rows]
        logits = torch.stack([_logits(sequence.token_ids) for sequence in sequences])
        samples = self.sampler.sample(logits, sequences)
        for i, sample in zip(rows, samples, strict=True):
            failed = sample.token_id is None
            results[i] = ChunkResult(sample.token_id, sample.logprobs, failed=failed)
        return results


def _logits(token_ids: list[int]) -> torch.Tensor:
    seed = int.from_bytes(prefix_hash(token_ids)[:6], "little")
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def random_engine(
    grammars: Grammars | None = None, *, num_blocks: int = 600, max_num_seqs: int = 4
) -> Engine:
    engine, _ = toy_engine(
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
        max_model_len=2000,
        eos_token_ids=(EOS,),
    )
    engine.info = msgspec.structs.replace(engine.info, vocab_size=VOCAB_SIZE)
    engine.runner = RandomRunner(engine.info.block_size)
    engine.grammars = grammars or InlineGrammars()
    return engine


def request_of(
    request_id: str, grammar: Grammar | None, *, max_tokens: int = 400, **sampling: object
) -> EngineRequest:
    return EngineRequest(
        id=request_id,
        prompt_token_ids=[65, 66, 67],
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
        grammar=grammar,
    )
