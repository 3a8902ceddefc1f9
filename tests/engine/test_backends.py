"""The reference backend against formulas written out in float64 and without a cache."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.base import Backend
from engine.backends.reference import ReferenceBackend
from engine.batch import Batch
from engine.kv_cache import LayerCache
from engine.kv_slots import PlainSlots
from engine.messages import EngineRequest, SamplingParams
from engine.sequence import Chunk, Sequence

BLOCK_SIZE = 4
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
BACKEND: Backend = ReferenceBackend()


SLOPES = torch.tensor([0.5, 0.25, 0.7, 0.1, 0.9, 0.01])


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, slopes: torch.Tensor
) -> torch.Tensor:
    """Causal attention of the last len(q) positions, head by head, in float64."""
    heads = []
    distances = torch.arange(len(k) - len(q), len(k)).unsqueeze(1) - torch.arange(len(k))
    visible = (distances >= 0) & (distances < (window or len(k)))
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        scores = q[:, head].double() @ k[:, kv_head].double().T / HEAD_DIM**0.5
        scores -= slopes[head].double() * distances
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        heads.append(weights @ v[:, kv_head].double())
    return torch.cat(heads, dim=-1)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8),
    st.sampled_from([None, 1, 5, 40, 100]),
    st.booleans(),
)
def test_paged_attention(
    shapes: list[tuple[int, int]], window: int | None, has_alibi: bool
) -> None:
    """Any mix of decodes and chunks, each after a context of its own, in a cache full of NaN."""
    slopes = SLOPES if has_alibi else None
    generator = torch.Generator().manual_seed(1)
    total = sum(start + size for start, size in shapes)
    num_blocks = total // BLOCK_SIZE + len(shapes)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    kv_caches = torch.full((2, num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), float("nan"))
    chunks, contexts = [], []
    for start, size in shapes:
        request = EngineRequest(
            id="s", prompt_token_ids=[0] * (start + size), sampling=SamplingParams(max_tokens=1)
        )
        sequence = Sequence(request, arrival=0)
        sequence.block_table = [free.pop() for _ in range(-(-(start + size) // BLOCK_SIZE))]
        chunks.append(Chunk(sequence, start, size))
        kv = torch.randn(2, start + size, KV_HEADS, HEAD_DIM, generator=generator)
        contexts.append(kv)
        for i in range(start):  # what earlier steps wrote
            kv_caches[:, sequence.block_table[i // BLOCK_SIZE], i % BLOCK_SIZE] = kv[:, i]
    batch = Batch.build(chunks, BLOCK_SIZE, torch.device("cpu"))
    queries = torch.randn(sum(n for _, n in shapes), HEADS, HEAD_DIM, generator=generator)
    step = BACKEND.step_attention(batch)
    keys, values = kv_caches
    new = [kv[:, chunk.start :] for kv, chunk in zip(contexts, chunks, strict=True)]
    new_keys, new_values = torch.cat(new, dim=1)
    cache = LayerCache(PlainSlots(keys.flatten(0, 1)), PlainSlots(values.flatten(0, 1)))
    step.write_kv(new_keys, new_values, cache)
    parts = queries.split_with_sizes([n for _, n in shapes])
    for layer_window in (window, None):  # layers of a model may differ in it
        out = step.paged_attention(queries, cache, layer_window, slopes)
        expected = [
            plain_attention(q, k, v, layer_window, SLOPES if has_alibi else 0 * SLOPES)
            for q, (k, v) in zip(parts, contexts, strict=True)
        ]
        torch.testing.assert_close(out.double(), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_rms_norm() -> None:
    x, residual, weight = torch.randn(3, 5, 16).unbind()
    total = (x + residual).double()
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight[0].double()
    normed, added = BACKEND.add_rms_norm(x.clone(), residual.clone(), weight[0], 1e-5)
    torch.testing.assert_close(normed.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(added, x + residual)
    alone = BACKEND.rms_norm(x + residual, weight[0], 1e-5)
    torch.testing.assert_close(alone.double(), expected, atol=1e-5, rtol=1e-5)


def test_rms_norm_rounds_after_the_weight_where_asked() -> None:
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64).bfloat16()
    floats = x.double()
    exact = floats / (floats.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    for normed in (
        BACKEND.rms_norm(x, weight, 1e-5, True),
        BACKEND.add_rms_norm(x, torch.zeros_like(x), weight, 1e-5, True)[0],
    ):
        assert normed.dtype == torch.bfloat16
        # one rounding only: half a unit of the last of 8 bits, and float32's own error
        assert ((normed.double() - exact).abs() <= exact.abs() * 2**-7.95).all()
    early = BACKEND.rms_norm(x, weight, 1e-5)
    assert ((early.double() - exact).abs() > exact.abs() * 2**-7.95).any()


def test_rms_norm_rounds_before_the_weight() -> None:
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64).bfloat16()
    floats = x.float()
    scaled = floats * torch.rsqrt(floats.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(BACKEND.rms_norm(x, weight, 1e-6), weight * scaled.bfloat16())


def test_rotary_turns_pairs_by_their_angle() -> None:
    x = torch.randn(3, 2, HEAD_DIM)
    angles = torch.rand(3, 1, 2)  # four of eight elements are rotated
    cos, sin = angles.cos(), angles.sin()
    out = BACKEND.rotary(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    pairs = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(out, torch.cat((pairs.real, pairs.imag, x[..., 4:]), -1))


def test_silu_mul() -> None:
    gate, up = torch.randn(2, 3, 10).unbind()
    expected = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(BACKEND.silu_mul(torch.cat((gate, up), -1)), expected)
