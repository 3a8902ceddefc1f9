"""Two and four processes give the greedy output of one, for every kind of layer and weight."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import pytest
import torch

from engine.config import EngineConfig
from engine.core import Engine
from engine.errors import ConfigError
from engine.load import load_engine
from engine.messages import EngineRequest, Grammar, SamplingParams, TokenEvent
from engine.parallel import TensorParallel, share_of
from engine.quant.groupwise import GroupwiseWeight, pack_nibbles
from engine.sharding import shard_columns
from tests.engine import quantized_models, seed_models, tiny_models
from tests.engine.quantized_models import Format
from tests.engine.test_family_engines import generate, prompts
from tests.server.small_app import byte_tokenizer, byte_tokenizer_json

GPTQ = {
    "gptq": Format(),
    "gptq-act-order": Format(act_order=True),
    "gptq-8bit-rows": Format(bits=8, group_size=-1),
    "awq": Format("awq"),
}

# 4 heads, 2 KV heads
SIZES = {"qwen2": {"hidden_size": 128, "intermediate_size": 160, "vocab_size": 290}}


def write(kind: str, folder: Path) -> None:
    if kind in GPTQ:
        quantized_models.write(folder, GPTQ[kind])
    elif kind == "qwen":
        seed_models.write_qwen_v1(folder, rotary_emb_base=1000)
    elif kind.startswith("baichuan"):
        seed_models.write_baichuan2(folder, kind.removeprefix("baichuan-"))
    elif kind == "chatglm":
        seed_models.write_chatglm(folder)
    else:
        tiny_models.write(tiny_models.build(kind, **SIZES.get(kind, {})), folder)


def load(folder: Path, num_ranks: int, **options: object) -> Engine:
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        kv_cache_memory_bytes=1 << 24,
        tensor_parallel_size=num_ranks,
    )
    return load_engine(msgspec.structs.replace(config, **options))


def outputs(folder: Path, num_ranks: int, **options: object) -> list[list[int]]:
    engine = load(folder, num_ranks, **options)
    try:
        return generate(engine, prompts(min(engine.info.vocab_size, 290)))
    finally:
        engine.runner.close()


@pytest.mark.parametrize(
    "kind",
    [*GPTQ, "qwen2", "qwen2_moe", "qwen3_moe", "qwen", "baichuan-7b", "baichuan-13b", "chatglm"],
)
def test_two_ranks_give_the_output_of_one(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path)
    assert outputs(tmp_path, 2) == outputs(tmp_path, 1)


def test_int4_on_load(tmp_path: Path) -> None:
    write("qwen2", tmp_path)
    assert outputs(tmp_path, 2, quantization="int4") == outputs(tmp_path, 1, quantization="int4")


def test_more_ranks_than_kv_heads(tmp_path: Path) -> None:
    write("qwen2", tmp_path)
    assert outputs(tmp_path, 4) == outputs(tmp_path, 1)


def test_prompt_logprobs_of_two_ranks(tmp_path: Path) -> None:
    write("qwen2", tmp_path)
    found = []
    for num_ranks in (1, 2):
        engine = load(tmp_path, num_ranks)
        sampling = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=1, logprobs=1)
        prompt = list(range(3, 150))
        engine.add(EngineRequest(id="a", prompt_token_ids=prompt, sampling=sampling))
        events = []
        while engine.has_work:
            events += engine.step()
        engine.runner.close()
        (values,) = [e.prompt_logprobs for e in events if isinstance(e, TokenEvent)][:1]
        assert values is not None
        found.append([entry.logprob for entry in values if entry is not None])
    assert len(found[0]) == 146
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]))


def test_grammars(tmp_path: Path) -> None:
    """Only rank 0 samples, so only rank 0 knows of them."""
    write("qwen2", tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json())
    schema = {"type": "array", "items": {"enum": ["abc", 12, True]}, "minItems": 2, "maxItems": 4}
    tokenizer = byte_tokenizer()
    found = []
    for num_ranks in (1, 2):
        engine = load(tmp_path, num_ranks)
        for i in range(2):
            sampling = SamplingParams(max_tokens=60, seed=i)
            grammar = Grammar(kind="json_schema", text=json.dumps(schema))
            prompt = [5 + i, 6, 7]
            engine.add(
                EngineRequest(
                    id=f"{i}", prompt_token_ids=prompt, sampling=sampling, grammar=grammar
                )
            )
        texts = {"0": b"", "1": b""}
        while engine.has_work or engine.is_compiling:
            assert engine.admit_compiled() == []
            for event in engine.step() if engine.has_work else ():
                if isinstance(event, TokenEvent):
                    texts[event.id] += b"".join(map(tokenizer.token_bytes, event.token_ids))
        engine.close()
        for text in texts.values():
            jsonschema.validate(json.loads(text), schema)
        found.append(texts)
    assert found[0] == found[1]


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    write("qwen2", tmp_path)
    with pytest.raises(ConfigError, match="--tensor-parallel-size 3"):
        load(tmp_path, 3)


@pytest.mark.parametrize("total", [1, 63, 64, 290, 11008])
@pytest.mark.parametrize("unit", [1, 32, 64, 128])
def test_shares_make_up_the_whole(total: int, unit: int) -> None:
    for size in (1, 2, 3, 4, 8):
        shares = [share_of(rank, size, total, unit) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(total))
        assert all(share.start % unit == 0 for share in shares if share)


@pytest.mark.parametrize("has_order", [False, True])
@pytest.mark.parametrize("boundary", [64, 72])  # between groups of 32, and inside of one
def test_products_of_column_shards_add_up(has_order: bool, boundary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 128), generator=generator, dtype=torch.uint8)
    weight = GroupwiseWeight(
        codes=pack_nibbles(codes),
        scales=torch.rand(8, 4, generator=generator) + 0.1,
        zeros=torch.randint(0, 16, (8, 4), generator=generator, dtype=torch.uint8),
        bits=4,
        group_size=32,
        order=torch.randperm(128, generator=generator) if has_order else None,
    )
    x = torch.randn(3, 128, generator=generator)
    total = torch.zeros(3, 8)
    for rank, columns in enumerate((slice(0, boundary), slice(boundary, 128))):
        part, takes_all = shard_columns(weight, columns, TensorParallel(rank, 2))
        assert takes_all == (has_order or boundary == 72)
        inputs = x if takes_all else x[:, columns]
        if part.order is not None:  # dequantize wants the columns that the part has
            inputs, part = inputs[:, part.order], replace(part, order=None)
        total += inputs @ part.dequantize().T
    torch.testing.assert_close(total, x @ weight.dequantize().T)
