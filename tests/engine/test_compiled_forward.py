"""The compiled forward pass, in each variant that this CPU runs, against the reference decoder."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.cpu import CpuBackend
from engine.batch import Batch
from engine.checkpoint import Checkpoint
from engine.kernels import library
from engine.kernels.forward import CompiledDecoder, reason_against
from engine.kv_slots import Int8Slots, PlainSlots, Slots
from engine.models.decoder import Decoder
from engine.parallel import TensorParallel
from engine.quant.groupwise import GroupwiseWeight, StackedWeight
from engine.sequence import Chunk
from engine.weights import load_decoder
from tests.engine import openmp, quantized_models, tiny_models
from tests.engine.compiled_models import KINDS, Models, token_ids
from tests.engine.forwarding import BLOCK_SIZE, Forwarder, tile_positions
from tests.engine.quantized_models import Format

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
VARIANTS = library.variants()
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
PACKED = ("gptq", "gptq-act-order", "gptq-8-bits", "awq")
# Keys are taken in splits of 128, whose results are merged.
LENGTHS = {"llama": 1300, "mistral-wide": 900, "llama-64-heads-share": 280}
WITH_INT8 = ("llama", "llama-odd", "mistral-wide", "qwen3-128", "baichuan-13b", "gptq")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def references(models: Models) -> Callable[..., torch.Tensor]:
    """Hidden states of the reference decoder, computed once."""
    return cache(lambda kind, *options: run(models.reference(kind), kind, *options)[1])


def run(
    decoder: Decoder, kind: str, kv_cache_dtype: Any = "auto", block_size: int = 16
) -> tuple[Forwarder, torch.Tensor]:
    """Hidden states of a sequence: two long chunks, then a few tokens at a time, as many as have
    their splits computed apart and one more.
    """
    ids = token_ids(LENGTHS.get(kind, 560))
    forwarder = Forwarder(decoder, len(ids) // block_size + 3, kv_cache_dtype, block_size)
    sequence = forwarder.sequence(ids, len(ids) // 2)
    hidden, start = [], 0
    for size in (len(ids) // 2, len(ids) - len(ids) // 2 - 21, 1, 2, 8, 9, 1):
        hidden += forwarder.hidden([Chunk(sequence, start, size)])
        start += size
    assert start == len(ids)
    return forwarder, torch.cat(hidden)


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())


# ---- against the reference ----


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32(
    models: Models, references: Callable[..., torch.Tensor], kind: str, name: str
) -> None:
    forwarder, hidden = run(models.compiled(kind, name), kind)
    compiled = forwarder.forward_pass
    assert isinstance(compiled, CompiledDecoder)
    wanted = references(kind)
    share = 2e-5 if kind in PACKED else 5e-6
    assert (hidden - wanted).abs().max() <= share * wanted.abs().max()
    logits = models.reference(kind).compute_logits(wanted[-7:])
    got = compiled.compute_logits(hidden[-7:])
    assert got.dtype == FLOAT32
    assert (got - logits).abs().max() <= share * logits.abs().max()


@pytest.fixture(scope="module")
def reference_errors(
    models: Models, references: Callable[..., torch.Tensor]
) -> Callable[[str], float]:
    """How far the reference decoder in bfloat16 is from itself in float32."""
    return cache(
        lambda kind: distance(run(models.reference(kind, BFLOAT16), kind)[1], references(kind))
    )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(
    models: Models,
    references: Callable[..., torch.Tensor],
    reference_errors: Callable[[str], float],
    kind: str,
    name: str,
) -> None:
    """As near to float32 as the reference in bfloat16, which is at 1% with plain weights: between
    products nothing is rounded here. Packed weights meet inputs of 8 bits, which costs more.
    """
    forwarder, hidden = run(models.compiled(kind, name, BFLOAT16), kind)
    assert isinstance(forwarder.forward_pass, CompiledDecoder)
    assert hidden.dtype == FLOAT32
    assert {tensor.dtype for tensor in forwarder.kv_cache.tensors()} == {BFLOAT16}
    wanted = references(kind)
    share = 2 if kind in PACKED else 1.1
    assert distance(hidden, wanted) <= share * reference_errors(kind)
    logits = models.reference(kind).compute_logits(wanted[-7:])
    got = forwarder.forward_pass.compute_logits(hidden[-7:])
    assert distance(got, logits) <= 0.1


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", WITH_INT8)
def test_int8_cache(
    models: Models, references: Callable[..., torch.Tensor], kind: str, name: str
) -> None:
    """In float32 the same as the reference's, but where a number falls between two codes."""
    hidden = run(models.compiled(kind, name), kind, "int8")[1]
    wanted = references(kind, "int8")
    error = (hidden - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.median() <= 1e-4 and error.max() <= 5e-3
    exact = references(kind)
    assert distance(hidden, exact) > 5e-4
    rounded = run(models.compiled(kind, name, BFLOAT16), kind, "int8")[1]
    assert distance(rounded, exact) <= 0.05


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("block_size", [1, 4, 48, 256])
def test_block_sizes(models: Models, name: str, block_size: int) -> None:
    """Blocks change where a token's keys are and nothing else."""
    for kind, dtype, cache_dtype in (
        ("qwen2", FLOAT32, "auto"),
        ("qwen3-128", FLOAT32, "auto"),
        ("qwen3-128", BFLOAT16, "auto"),
        ("llama-odd", BFLOAT16, "auto"),
        ("qwen3-128", BFLOAT16, "int8"),
    ):
        decoder = models.compiled(kind, name, dtype)
        hidden = run(decoder, kind, cache_dtype, block_size)[1]
        assert torch.equal(hidden, run(decoder, kind, cache_dtype)[1])


def _written(decoder: Decoder, kv_cache_dtype: Any) -> tuple[Slots, Slots]:
    """The keys and values that the first layer wrote for 40 tokens, in the order of the tokens."""
    forwarder = Forwarder(decoder, 10, kv_cache_dtype)
    sequence = forwarder.sequence(token_ids(40))
    forwarder.hidden([Chunk(sequence, 0, 40)])
    slots = torch.tensor(sequence.block_table).repeat_interleave(4) * 4 + torch.arange(40) % 4
    layer = forwarder.kv_cache.layers[0]
    found = []
    for half in (layer.keys, layer.values):
        if isinstance(half, PlainSlots) and isinstance(forwarder.forward_pass, CompiledDecoder):
            positions = tile_positions(half, are_keys=half is layer.keys)
            half = PlainSlots(half.data.flatten()[positions])
        taken = [tensor[slots] for tensor in half.tensors()]
        found.append(type(half)(*taken))
    return found[0], found[1]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["llama", "llama-odd", "qwen3-128", "chatglm"])
def test_what_is_written_to_the_cache(models: Models, name: str, kind: str) -> None:
    """Keys are rotated and not scaled, values are as they were; int8 is engine/kv_slots's."""
    everything = torch.arange(40)
    for ours, reference in zip(
        _written(models.compiled(kind, name), "auto"),
        _written(models.reference(kind), "auto"),
        strict=True,
    ):
        wanted = reference.read(everything)
        torch.testing.assert_close(ours.read(everything), wanted, atol=2e-5, rtol=2e-5)
    for dtype in (FLOAT32, BFLOAT16):
        for ours, reference in zip(
            _written(models.compiled(kind, name, dtype), "int8"),
            _written(models.reference(kind), "auto"),
            strict=True,
        ):
            wanted = reference.read(everything)
            assert isinstance(ours, Int8Slots) and ours.scales.dtype == dtype
            groups = wanted.reshape(*ours.scales.shape, -1)
            scales = groups.abs().amax(-1) / 127
            close = 2e-5 if dtype == FLOAT32 else 0.03  # inputs were rounded too
            torch.testing.assert_close(ours.scales.float(), scales, rtol=close, atol=close / 100)
            codes = ours.codes.view(groups.shape)
            if dtype == FLOAT32:
                steps = (codes - groups / scales.unsqueeze(-1)).abs()
                assert steps.max() <= 0.501
            else:
                assert (codes.abs().amax(-1) >= 126).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_of_different_kinds(models: Models, name: str) -> None:
    """As in GGUF files, where v has more bits than q and k; here all mean the same numbers."""
    decoder = load_decoder(
        Checkpoint.open(models.folder("gptq")), FLOAT32, CPU, CpuBackend(variant=name)
    )
    for ours, layer in zip(decoder.layers, models.reference("gptq").layers, strict=True):
        weight = layer.attention.qkv.weight
        assert isinstance(weight, GroupwiseWeight)
        values = weight.select_rows(slice(96, 128))
        smaller = replace(
            values,
            codes=values.unpacked(),
            bits=8,
            group_size=16,
            scales=values.scales.repeat_interleave(2, dim=1),
            zeros=values.zeros.repeat_interleave(2, dim=1),
        )
        parts = (weight.select_rows(slice(0, 64)), weight.select_rows(slice(64, 96)), smaller)
        prepared = tuple(decoder.backend.prepare(part, FLOAT32) for part in parts)
        ours.attention.qkv.weight = StackedWeight(prepared)
    forwarder, hidden = run(decoder, "gptq")
    assert isinstance(forwarder.forward_pass, CompiledDecoder)
    assert torch.equal(hidden, run(models.compiled("gptq", name), "gptq")[1])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["llama", "llama-odd"])
def test_what_is_rounded_to_bfloat16(models: Models, name: str, kind: str) -> None:
    """Inputs of products and what is written to the cache, to nearest, and nothing in between."""
    layer = models.reference(kind, BFLOAT16).layers[0]
    config = models.reference(kind).config
    weight = layer.attention.qkv.weight
    assert isinstance(weight, torch.Tensor)
    table = models.reference(kind, BFLOAT16).embedding.weight
    assert isinstance(table, torch.Tensor)
    x = table[torch.tensor(token_ids(40))].double()
    x = x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
    x = (x * layer.attention_norm.weight.double()).bfloat16().double()
    heads = (x @ weight.double().T).view(40, -1, config.head_dim)
    found = _written(models.compiled(kind, name, BFLOAT16), "auto")[1].read(torch.arange(40))
    wanted = heads[:, -config.num_kv_heads :].bfloat16()
    assert (found == wanted).float().mean() >= 0.98  # but for what is near the middle of two
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-6)


# ---- a step ----

# of 80 tokens
PIECES: list[list[list[int]]] = [
    [[0, 1, 29, 40, 79]],
    [[79]],
    [list(range(80))],
    [[5, 3], [79, 0]],
    [[]],
    [],
]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("kind", "dtype", "cache_dtype"),
    [("llama", FLOAT32, "auto"), ("awq", BFLOAT16, "auto"), ("baichuan-13b", BFLOAT16, "int8")],
)
def test_any_number_of_threads(
    models: Models, name: str, kind: str, dtype: torch.dtype, cache_dtype: Any
) -> None:
    """They share the work differently and compute the same bits."""
    decoder = models.compiled(kind, name, dtype)
    found = []
    for count in (1, 2, 3):
        with openmp.num_threads(count):
            forwarder = Forwarder(decoder, kv_cache_dtype=cache_dtype)
            sequences = [forwarder.sequence(token_ids(n + 1, n)) for n in (90, 300)]
            hidden = forwarder.hidden([Chunk(s, 0, s.num_tokens - 1) for s in sequences])
            last = forwarder.step([Chunk(s, s.num_tokens - 1, 1) for s in sequences])
            found.append((torch.cat(hidden), torch.cat(last)))
    for hidden_states, logits in found[1:]:
        assert torch.equal(hidden_states, found[0][0])
        assert torch.equal(logits, found[0][1])


@pytest.mark.parametrize("name", VARIANTS)
def test_sequences_of_one_step_have_their_own_angles(models: Models, name: str) -> None:
    """Those of Qwen v1 depend on the length of the prompt."""
    lengths = [1, 20, 32, 33, 64, 65, 140]
    results = []
    for decoder in (models.compiled("qwen", name), models.reference("qwen")):
        forwarder = Forwarder(decoder)
        sequences = [forwarder.sequence(token_ids(n, seed=n)) for n in lengths]
        hidden = forwarder.hidden([Chunk(s, 0, s.num_tokens - 1) for s in sequences[1:]])
        hidden += forwarder.hidden([Chunk(s, s.num_tokens - 1, 1) for s in sequences])
        results.append(torch.cat(hidden))
    assert (results[0] - results[1]).abs().max() <= 2e-5 * results[1].abs().max()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama-odd", FLOAT32), ("gptq", BFLOAT16), ("llama-tied-biases", BFLOAT16)]
)
def test_logits_of_some_tokens(models: Models, name: str, kind: str, dtype: torch.dtype) -> None:
    """The last layer is left out for tokens that nothing is asked of; the cache gets them all."""
    forwarder = Forwarder(models.compiled(kind, name, dtype))
    compiled, cache = forwarder.forward_pass, forwarder.kv_cache
    assert isinstance(compiled, CompiledDecoder)
    prompts = [token_ids(n, seed=n) for n in (31, 51)]
    whole = forwarder.step([Chunk(forwarder.sequence(ids), 0, len(ids)) for ids in prompts])
    wanted = torch.cat([logits[:-1] for logits in whole])
    for pieces in PIECES:
        sequences = [forwarder.sequence(ids) for ids in prompts]
        batch = Batch.build([Chunk(s, 0, s.num_tokens - 1) for s in sequences], BLOCK_SIZE, CPU)
        found = list(compiled.logits(batch, cache, pieces))
        assert len(found) == len(pieces)
        for logits, piece in zip(found, pieces, strict=True):
            assert torch.equal(logits, wanted[piece])
        last = forwarder.step([Chunk(s, s.num_tokens - 1, 1) for s in sequences])
        assert torch.equal(torch.cat(last), torch.cat([logits[-1:] for logits in whole]))


# ---- what is computed otherwise ----


def _load(folder: Path, dtype: torch.dtype = FLOAT32, **options: Any) -> Decoder:
    checkpoint = Checkpoint.open(folder)
    return load_decoder(checkpoint, dtype, CPU, CpuBackend(), **options)


def _refused(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> str:
    """The reason that is logged; the decoder then computes itself."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert Forwarder(decoder, 2).forward_pass is decoder
    (record,) = caplog.records
    reason = record.getMessage().removeprefix("the compiled forward pass is not used: ")
    assert reason == reason_against(decoder)
    return reason


def _assert_computes(decoder: Decoder, model: Any, tolerance: float = 1e-4) -> None:
    ids = token_ids(40)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    logits = Forwarder(decoder).logits(ids, 17)
    assert distance(logits, wanted) <= tolerance


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_experts(tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype) -> None:
    model = tiny_models.build("qwen3_moe")
    decoder = _load(tiny_models.write(model, tmp_path), dtype)
    assert _refused(decoder, caplog) == "a layer is a mixture of experts"
    _assert_computes(decoder, model, 1e-4 if dtype == FLOAT32 else 0.1)


def test_float16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_models.build("llama")
    decoder = _load(tiny_models.write(model, tmp_path / "a"), torch.float16)
    assert _refused(decoder, caplog) == "torch.float16 is not computed by them"
    _assert_computes(decoder, model, 0.01)
    model = quantized_models.write(tmp_path / "b", Format())
    decoder = _load(tmp_path / "b", torch.float16)
    assert _refused(decoder, caplog) == "torch.float16 is not computed by them"
    _assert_computes(decoder, model, 0.02)


def test_a_rank_of_several(tmp_path: Path) -> None:
    folder = tiny_models.write(tiny_models.build("llama"), tmp_path)
    decoder = _load(folder, parallel=TensorParallel(0, 2))
    assert reason_against(decoder) == "it is one rank of several"


def test_too_many_heads_share_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"hidden_size": 66, "num_attention_heads": 66, "num_key_value_heads": 1}
    model = tiny_models.build("llama", head_dim=4, **options)
    decoder = _load(tiny_models.write(model, tmp_path), FLOAT32)
    assert _refused(decoder, caplog) == "too many heads share keys"
    _assert_computes(decoder, model)


def test_heads_of_an_odd_size(tmp_path: Path) -> None:
    """bfloat16 is multiplied in pairs."""
    decoder = _load(tiny_models.write(tiny_models.build("llama"), tmp_path))
    decoder.config = replace(decoder.config, head_dim=7)
    assert reason_against(decoder) == "its heads are of an odd size"


def test_groups_that_the_kernels_lack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = quantized_models.write(tmp_path, Format(group_size=8, bits=8))
    decoder = _load(tmp_path)
    assert isinstance(decoder.layers[0].attention.output.weight, GroupwiseWeight)
    assert _refused(decoder, caplog) == "a weight has groups that they do not have"
    _assert_computes(decoder, model)


def test_an_embedding_or_a_head_that_is_not_packed(tmp_path: Path) -> None:
    folder = tiny_models.write(tiny_models.build("llama"), tmp_path)
    for name, reason in (
        ("embedding", "the embedding has groups that they do not have"),
        ("head", "the head has groups that they do not have"),
    ):
        decoder = _load(folder)
        assert reason_against(decoder) is None
        weight = torch.zeros(tiny_models.VOCAB_SIZE, 32)
        getattr(decoder, name).weight = weight
        assert reason_against(decoder) == reason


def test_without_kernels_the_decoder_computes_itself(models: Models) -> None:
    checkpoint = Checkpoint.open(models.folder("llama"))
    backend = CpuBackend(compiled=False)
    decoder = load_decoder(checkpoint, FLOAT32, CPU, backend)
    assert Forwarder(decoder).forward_pass is decoder
