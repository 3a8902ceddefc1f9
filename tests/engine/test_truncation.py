import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.messages import SamplingParams
from engine.truncation import Truncation, candidate_counts, candidates, weights_of

PARAMS = [
    SamplingParams(max_tokens=9, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in [
        (1.0, 20, 1.0, 0.0),
        (0.7, 20, 0.8, 0.0),
        (0.6, 0, 0.95, 0.0),
        (1.0, 0, 0.3, 0.0),
        (1.5, 0, 0.999, 0.0),
        (1.0, 0, 0.9, 0.1),
        (1.0, 100, 0.5, 0.02),
        (2.0, 3000, 0.9, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 0, 1e-9, 0.0),
    ]
]


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution transformers samples from, (n, vocab) float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    result: torch.Tensor = warpers(torch.zeros(1, 1), logits.double()).softmax(-1)
    return result


def filtered(logits: torch.Tensor, params: SamplingParams, count: int) -> tuple[torch.Tensor, bool]:
    """Our weights (vocab,) float64 of one row, and whether `count` candidates sufficed."""
    truncation = Truncation.of([params], logits.shape[-1], logits.amax(-1))
    totals = weights_of(logits, truncation).sum(-1, keepdim=True, dtype=torch.float64)
    found = candidates(logits, totals, truncation, count)
    result = torch.zeros(logits.shape, dtype=torch.float64)
    return result.scatter_(-1, found.ids, found.weights)[0], bool(found.is_complete)


def peaked_logits(vocab_size: int, seed: int) -> torch.Tensor:
    """One row, no two logits equal: a head of likely tokens over a broad tail."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(vocab_size, generator=generator)
    head = torch.linspace(12, 0, vocab_size)[order] ** 2 / 12
    return head.unsqueeze(0)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_distribution_equals_transformers(params: SamplingParams, seed: int) -> None:
    logits = peaked_logits(5000, seed)
    expected = reference(logits, params)[0]
    weights, is_complete = filtered(logits, params, 5000)
    assert is_complete
    assert torch.equal(weights > 0, expected > 1e-12)
    torch.testing.assert_close(weights / weights.sum(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("kind", ["peaked", "random", "ties", "few finite"])
def test_few_candidates_equal_the_full_sort(params: SamplingParams, kind: str) -> None:
    logits = peaked_logits(20_000, 3)
    if kind == "random":
        logits = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(3)) * 4
    elif kind == "ties":
        logits = logits.round()
    elif kind == "few finite":
        logits[0, 40:] = float("-inf")
    expected, _ = filtered(logits, params, 20_000)
    sufficient = []
    for count in candidate_counts(20_000):
        weights, is_complete = filtered(logits, params, count)
        if is_complete:
            assert torch.equal(weights, expected)
        sufficient.append(is_complete)
    assert sufficient == sorted(sufficient)  # once enough, always enough
    assert sufficient[-1]
    if kind == "few finite":
        assert sufficient[0]


def test_ties_at_a_boundary_stay_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    top_k, _ = filtered(logits, SamplingParams(max_tokens=9, top_k=2), 6)
    assert top_k.nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert torch.equal(top_k > 0, TopKLogitsWarper(2)(torch.zeros(1, 1), logits)[0] > -100)
    top_p, _ = filtered(logits, SamplingParams(max_tokens=9, top_p=0.6), 6)
    assert top_p.nonzero().flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("vocab_size", [1, 2, 1000, 151_936, 262_144])
def test_weights_add_up_exactly(vocab_size: int) -> None:
    params = SamplingParams(max_tokens=9)
    truncation = Truncation.of([params], vocab_size, torch.zeros(1))
    assert vocab_size * truncation.scale <= 2**53
    weights = weights_of(torch.linspace(0, -30, vocab_size).unsqueeze(0), truncation)
    assert torch.equal(weights, weights.round())
    exact = sum(int(weight) for weight in weights[0].tolist())
    assert int(weights.sum(dtype=torch.float64)) == exact
    assert int(weights.double().cumsum(-1)[0, -1]) == exact


def test_tiny_temperature_is_the_maximum() -> None:
    params = SamplingParams(max_tokens=9, temperature=1e-300, top_p=0.9)
    weights, _ = filtered(torch.tensor([[1.0, 1.0 + 1e-6, 1.0 + 1e-6, -1e30]]), params, 4)
    assert weights.nonzero().flatten().tolist() == [1, 2]
