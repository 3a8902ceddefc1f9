"""Whole engines on a tiny model of each family: greedy output is the reference's, whatever else is
in the batch, in small chunks, out of the prefix cache and after preemption.

Teacher-forced, as in test_greedy_equality.py: each token must be the reference's argmax given the
tokens before it, or within 1e-4 of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.config import EngineConfig
from engine.core import Engine
from engine.load import load_engine
from engine.messages import EngineRequest, Finished, SamplingParams, TokenEvent
from tests.engine import quantized_models, seed_models, tiny_models
from tests.engine.references import baichuan2, chatglm, qwen_v1

# (token ids, length of the prompt) -> logits (length, vocab_size)
Reference = Callable[[list[int], int], torch.Tensor]
MAX_TOKENS = 40


def of_transformers(model: Any) -> Reference:
    def logits(token_ids: list[int], num_prompt_tokens: int) -> torch.Tensor:
        with torch.no_grad():
            rows: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
        return rows

    return logits


def write(kind: str, folder: Path) -> Reference:
    """A checkpoint of this kind and its reference."""
    if kind == "qwen":
        weights, config = seed_models.write_qwen_v1(folder, rotary_emb_base=1000)
        return lambda ids, num_prompt: qwen_v1.forward(weights, config, ids, num_prompt)
    if kind.startswith("baichuan"):
        weights, config = seed_models.write_baichuan2(folder, kind.removeprefix("baichuan-"))
        return lambda ids, num_prompt: baichuan2.forward(weights, config, ids)
    if kind == "chatglm":
        weights, config = seed_models.write_chatglm(folder)
        return lambda ids, num_prompt: chatglm.forward(weights, config, ids)
    if kind in ("gptq", "awq"):
        return of_transformers(quantized_models.write(folder, quantized_models.Format(kind)))  # type: ignore[arg-type]
    window = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    options = window if kind == "qwen2" else {}
    model = tiny_models.build(kind, **options)
    tiny_models.write(model, folder)
    return of_transformers(model)


KINDS = [
    "qwen",
    "baichuan-7b",
    "baichuan-13b",
    "chatglm",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "gptq",
    "awq",
]


def prompts(vocab_size: int) -> list[list[int]]:
    """20 of all lengths around 32, 64 and 128, where tiny Qwen v1 changes its angles; some share a
    prefix, on both sides of such a length.
    """
    generator = torch.Generator().manual_seed(7)
    shared = torch.randint(3, vocab_size, (130,), generator=generator).tolist()
    lengths = (1, 2, 5, 17, 20, 27, 30, 31, 33, 40, 47, 63, 64, 65, 80, 100)
    prefixes = [shared[:length] for length in (31, 32, 60, 130)]
    return prefixes + [
        torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths
    ]


def generate(engine: Engine, all_prompts: list[list[int]]) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    for i, prompt in enumerate(all_prompts):
        engine.add(EngineRequest(id=str(i), prompt_token_ids=prompt, sampling=sampling))
    outputs: list[list[int]] = [[] for _ in all_prompts]
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                outputs[int(event.id)] += event.token_ids
            elif isinstance(event, Finished):
                assert event.reason == "length", event
    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_output(tmp_path: Path, kind: str) -> None:
    reference = write(kind, tmp_path)
    loaded = load_engine(
        EngineConfig(model=str(tmp_path), dtype="float32", kv_cache_memory_bytes=1 << 24)
    )

    def variant(num_blocks: int, budget: int, caching: bool = True) -> Engine:
        return Engine(
            loaded.runner,
            msgspec.structs.replace(loaded.info, num_blocks=num_blocks),
            eos_token_ids=loaded.eos_token_ids,
            max_num_seqs=24,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
        )

    all_prompts = prompts(min(loaded.info.vocab_size, 290))
    together = generate(variant(400, 4096), all_prompts)
    for prompt, output in zip(all_prompts, together, strict=True):
        assert len(output) == MAX_TOKENS
        logits = reference(prompt + output, len(prompt))[len(prompt) - 1 : -1]
        # padded rows of the vocabulary are never sampled
        logits = logits[:, : loaded.runner.num_valid_tokens]  # type: ignore[attr-defined]
        chosen = logits.gather(1, torch.tensor(output).unsqueeze(1)).squeeze(1)
        assert (logits.amax(dim=1) - chosen).max() <= 1e-4
    cached = variant(400, 4096)
    generate(cached, all_prompts)
    assert generate(cached, all_prompts) == together
    assert cached.stats().prefix_cache_hits > 500
    assert generate(variant(400, 24), all_prompts) == together
    tiny = variant(14, 64)
    assert generate(tiny, all_prompts) == together
    assert tiny.stats().num_preemptions > 0
    alone = [generate(variant(400, 4096, False), [prompt])[0] for prompt in all_prompts]
    assert alone == together
