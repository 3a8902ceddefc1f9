"""Greedy output and logprobs of the real models against transformers, float32, in every mode of the
engine.

The reference is teacher-forced: transformers computes the logits of prompt + our output in one
pass, and each of our tokens must be its argmax given the tokens before it. By induction that is
what its own greedy generation would have produced. A different token counts as equal only where it
is within 1e-4 of the best.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import Engine
from engine.load import load_engine
from engine.messages import EngineRequest, Finished, SamplingParams, TokenEvent, TokenLogprobs
from protocol.tokenizer import Tokenizer
from server.served_model import tokenizer_of
from tests.engine.gguf_reference import reference_model
from tests.engine.prompts import PROMPTS

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1500)]

TOLERANCE = 1e-4


@dataclass
class Output:
    token_ids: list[int]  # the stop token included
    logprobs: list[TokenLogprobs]  # without the stop token's


@dataclass
class RealModel:
    engine: Engine
    prompts: list[list[int]]
    max_tokens: int
    reference: Any
    checked: dict[tuple[int, ...], torch.Tensor]

    def variant(
        self,
        *,
        num_blocks: int | None = None,
        max_num_seqs: int = 64,
        budget: int = 4096,
        caching: bool = False,
    ) -> Engine:
        """The same weights under other scheduling limits."""
        info = self.engine.info
        return Engine(
            self.engine.runner,
            msgspec.structs.replace(info, num_blocks=num_blocks or info.num_blocks),
            eos_token_ids=self.engine.eos_token_ids,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
        )

    def generate(
        self, engine: Engine, indices: list[int], max_tokens: int | None = None
    ) -> dict[int, Output]:
        outputs = {i: Output([], []) for i in indices}
        sampling = SamplingParams(
            max_tokens=max_tokens or self.max_tokens, temperature=0, logprobs=3
        )
        for i in indices:
            engine.add(
                EngineRequest(id=str(i), prompt_token_ids=self.prompts[i], sampling=sampling)
            )
        while engine.has_work:
            for event in engine.step():
                output = outputs[int(event.id)]
                if isinstance(event, TokenEvent):
                    output.token_ids += event.token_ids
                    output.logprobs += event.logprobs or []
                elif isinstance(event, Finished) and event.stop_token_id is not None:
                    output.token_ids.append(event.stop_token_id)
        return outputs

    def check(self, outputs: dict[int, Output]) -> None:
        for i, output in outputs.items():
            wanted = self.reference_logprobs(self.prompts[i], output.token_ids)
            best = wanted.max(dim=-1).values
            chosen = wanted[torch.arange(len(output.token_ids)), torch.tensor(output.token_ids)]
            assert (best - chosen).max() <= TOLERANCE, f"prompt {i}: not the reference's choice"
            if self.error_of(output, wanted) > TOLERANCE:
                # the rounding of two float32 computations may add up to more: ask the exact one
                wanted = self.exact_logprobs(self.prompts[i], output.token_ids)
            assert self.error_of(output, wanted) <= TOLERANCE, f"prompt {i}: logprobs differ"

    def error_of(self, output: Output, wanted: torch.Tensor) -> float:
        """The largest difference of our logprobs, the chosen and the top ones, from `wanted`."""
        errors = [0.0]
        for row, ours in zip(wanted, output.logprobs, strict=False):
            errors.append(abs(ours.logprob - row[ours.token_id].item()))
            theirs = row.topk(len(ours.top)).values.tolist()
            errors += [abs(a - b) for (_, a), b in zip(ours.top, theirs, strict=True)]
        return max(errors)

    def reference_logprobs(self, prompt: list[int], output: list[int]) -> torch.Tensor:
        """Log-probabilities (len(output), vocab_size) of the positions that `output` fills."""
        key = (*prompt, *output)
        if key not in self.checked:
            self.checked[key] = self.forward(key, len(output))
        return self.checked[key]

    def exact_logprobs(self, prompt: list[int], output: list[int]) -> torch.Tensor:
        """The same from the reference in float64."""
        self.reference.double()
        try:
            return self.forward((*prompt, *output), len(output))
        finally:
            self.reference.float()  # the weights were float32: nothing is lost

    def forward(self, token_ids: tuple[int, ...], num_last: int) -> torch.Tensor:
        with torch.inference_mode():
            logits = self.reference(torch.tensor([token_ids]), logits_to_keep=num_last + 1).logits
        return torch.log_softmax(logits[0, :-1], dim=-1)


def load(path: Path, max_tokens: int) -> RealModel:
    engine = load_engine(
        EngineConfig(model=str(path), dtype="float32", kv_cache_memory_bytes=1 << 30)
    )
    tokenizer: Tokenizer = tokenizer_of(Checkpoint.open(path))
    prompts = [tokenizer.encode(text, parse_special=True) for text in PROMPTS]
    return RealModel(engine, prompts, max_tokens, reference_model(path), {})


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[RealModel]:
    yield load(smollm2_path, max_tokens=24)


@pytest.fixture(scope="module")
def qwen_coder(qwen_coder_path: Path) -> Iterator[RealModel]:
    yield load(qwen_coder_path, max_tokens=10)


@pytest.fixture(params=["smollm2", "qwen_coder"])
def model(request: pytest.FixtureRequest) -> RealModel:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


EVERY_PROMPT = list(range(len(PROMPTS)))


def test_alone(model: RealModel) -> None:
    engine = model.variant()
    for i in EVERY_PROMPT:
        model.check(model.generate(engine, [i]))


def test_all_at_once(model: RealModel) -> None:
    model.check(model.generate(model.variant(), EVERY_PROMPT))


def test_small_chunks(model: RealModel) -> None:
    model.check(model.generate(model.variant(max_num_seqs=12, budget=29), EVERY_PROMPT))


def test_prefix_cache_hits(model: RealModel) -> None:
    engine = model.variant(caching=True)
    model.generate(engine, EVERY_PROMPT)
    hits = engine.stats().prefix_cache_hits
    model.check(model.generate(engine, EVERY_PROMPT))
    found = engine.stats().prefix_cache_hits - hits
    whole_blocks = sum((len(ids) - 1) // 16 * 16 for ids in model.prompts)
    assert found == whole_blocks


@pytest.mark.parametrize("caching", [False, True])
def test_preemption(model: RealModel, caching: bool) -> None:
    max_tokens = 24  # more than a block: every sequence must ask for another one on its way
    longest = max(len(ids) for ids in model.prompts) + max_tokens
    # room for the longest sequence and little else
    engine = model.variant(num_blocks=longest // 16 + 2, budget=512, caching=caching)
    model.check(model.generate(engine, EVERY_PROMPT, max_tokens))
    assert engine.stats().num_preemptions > 0
