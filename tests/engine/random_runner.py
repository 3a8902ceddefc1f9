"""A toy model that knows nothing: random logits over the vocabulary of tests/engine/grammars.py.

They are a function of the tokens before, so a sequence samples the same however it is scheduled.
"""

from collections.abc import Sequence as ListLike
from itertools import islice

import msgspec
import torch

from engine.core import Engine
from engine.grammar_compiler import Grammars
from engine.messages import EngineRequest, Grammar, SamplingParams
from engine.model_runner import result_of, sampled_rows
from engine.results import ChunkResult
from engine.sampler import Sampler
from engine.sequence import Chunk, DraftedSequence, Sampled
from engine.speculation.speculator import Speculator
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
        sampled = [row for i in rows for row in sampled_rows(chunks[i])]
        samples = iter(self.sampler.sample(torch.stack(list(map(self.logits, sampled))), sampled))
        for i in rows:
            results[i] = result_of(list(islice(samples, 1 + len(chunks[i].drafts))))
        return results

    def logits(self, sampled: Sampled) -> torch.Tensor:
        if isinstance(sampled, DraftedSequence):
            return _logits([*sampled.sequence.token_ids, *sampled.drafts])
        return _logits(sampled.token_ids)


def _logits(token_ids: list[int]) -> torch.Tensor:
    seed = int.from_bytes(prefix_hash(token_ids)[:6], "little")
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def random_engine(
    grammars: Grammars | None = None,
    *,
    num_blocks: int = 600,
    max_num_seqs: int = 4,
    max_model_len: int = 2000,
    enable_prefix_caching: bool = True,
    speculator: Speculator | None = None,
) -> Engine:
    engine, _ = toy_engine(
        speculator=speculator,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
        max_model_len=max_model_len,
        enable_prefix_caching=enable_prefix_caching,
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
