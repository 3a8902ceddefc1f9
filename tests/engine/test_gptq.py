"""engine/quant/gptq.py against GPTQ written down naively in float64, and the words of its files."""

from functools import cache

import pytest
import torch

from engine.errors import ConfigError
from engine.quant.gptq import GptqOptions, output_error, quantize_gptq
from engine.quant.gptq_tensors import gptq_tensors
from engine.quant.groupwise import GroupwiseWeight

ROWS, COLUMNS = 24, 384
OPTIONS = [
    GptqOptions(),
    GptqOptions(group_size=32),
    GptqOptions(group_size=96),  # neither divides a block nor is a multiple of one
    GptqOptions(group_size=192, symmetric=False),
    GptqOptions(group_size=None),
    GptqOptions(group_size=32, act_order=True),
    GptqOptions(group_size=None, act_order=True, symmetric=False),
    GptqOptions(bits=8, group_size=32),
    GptqOptions(bits=8, group_size=96, act_order=True, symmetric=False, damp=0.1),
]


def problem(columns: int = COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moments of inputs that are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    sizes = torch.rand(columns, generator=generator, dtype=torch.float64) * 3 + 0.1
    sources = torch.randn(800, columns, generator=generator, dtype=torch.float64)
    inputs = (sources @ (mixed * 0.2 + torch.eye(columns))) * sizes
    return weight, inputs.T @ inputs / len(inputs)


def naive(
    weight: torch.Tensor, hessian: torch.Tensor, options: GptqOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and the weights they mean, both (rows, columns), by the OBQ step (equations 2 and 3 of
    the paper) for one column after another: the inverse Hessian itself, without its Cholesky
    factor, and no blocks.
    """
    weight, columns, top = weight.clone(), weight.shape[1], 2**options.bits - 1
    order = list(range(columns))
    if options.act_order:
        order.sort(key=lambda i: -float(hessian[i, i]))
    damp = options.damp * torch.diagonal(hessian).mean()
    inverse = torch.linalg.inv(hessian + damp * torch.eye(columns, dtype=hessian.dtype))
    group_size = options.group_size or columns
    codes, rounded = torch.zeros_like(weight), torch.zeros_like(weight)
    for position, i in enumerate(order):
        if position % group_size == 0:
            group = weight[:, order[position : position + group_size]]
            scale, zero = naive_grid(group, options)
        codes[:, i] = (weight[:, i] / scale + zero).round().clamp(0, top)
        rounded[:, i] = scale * (codes[:, i] - zero)
        error = (weight[:, i] - rounded[:, i]) / inverse[i, i]
        left = order[position + 1 :]
        weight[:, left] -= error[:, None] * inverse[i, left]
        inverse = inverse - inverse[:, i : i + 1] * inverse[i : i + 1] / inverse[i, i]
    return codes, rounded


@cache
def expected(options: GptqOptions) -> tuple[torch.Tensor, torch.Tensor]:
    return naive(*problem(), options)


def naive_grid(group: torch.Tensor, options: GptqOptions) -> tuple[torch.Tensor, torch.Tensor]:
    scales, zeros, top = [], [], 2**options.bits - 1
    for row in group.tolist():
        low, high = min(0.0, *row), max(0.0, *row)
        if options.symmetric:
            scale, zero = 2 * max(-low, high) / top, (top + 1) // 2
        else:
            scale = (high - low) / top
            zero = round(-low / scale)
            if zero == 0:
                scale, zero = high / (top - 1), 1
        scales.append(scale)
        zeros.append(zero)
    exact = torch.tensor(scales, dtype=torch.float64)
    return exact.half().double(), torch.tensor(zeros, dtype=torch.float64)


def in_order(weight: GroupwiseWeight) -> torch.Tensor:
    codes = weight.unpacked()
    if weight.order is None:
        return codes
    return torch.empty_like(codes).index_copy_(1, weight.order, codes)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_equals_the_naive_algorithm(options: GptqOptions) -> None:
    weight, hessian = problem()
    codes, rounded = expected(options)
    quantized = quantize_gptq(weight, hessian, options)
    assert torch.equal(in_order(quantized).double(), codes)
    torch.testing.assert_close(quantized.dequantize().double(), rounded, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_float32_loses_nothing(options: GptqOptions) -> None:
    weight, hessian = problem()
    _, rounded = expected(options)
    quantized = quantize_gptq(weight.float(), hessian.float(), options).dequantize()
    wanted = output_error(weight, rounded, hessian)
    assert output_error(weight, quantized.double(), hessian) <= wanted * 1.03


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_is_better_than_rounding_to_nearest(options: GptqOptions) -> None:
    weight, hessian = problem()
    identity = torch.eye(COLUMNS, dtype=torch.float64)  # inputs that say nothing of each other
    nearest = quantize_gptq(weight, identity, options).dequantize()
    quantized = quantize_gptq(weight, hessian, options).dequantize()
    error = output_error(weight, quantized.double(), hessian)
    assert error < 0.6 * output_error(weight, nearest.double(), hessian)


def test_without_correlations_it_is_rounding_to_nearest() -> None:
    weight, _ = problem()
    quantized = quantize_gptq(weight, torch.eye(COLUMNS, dtype=torch.float64), GptqOptions(4, 32))
    groups = weight.view(ROWS, -1, 32)
    scales = (groups.abs().amax(-1) * 2 / 15).half().double()
    assert torch.equal(quantized.scales.double(), scales)
    codes = (groups / scales[..., None] + 8).round().clamp(0, 15)
    assert torch.equal(quantized.unpacked().double().view_as(groups), codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_odd_groups(bits: int, symmetric: bool) -> None:
    """All zero, all of one sign, one outlier: what is stored means about what it was."""
    ramp = torch.linspace(0.1, 1, 32)
    spike = torch.zeros(32)
    spike[3] = -2
    weight = torch.stack([0 * ramp, ramp, -ramp, spike, ramp * 1e-9])
    options = GptqOptions(bits, 32, symmetric=symmetric)  # type: ignore[arg-type]
    quantized = quantize_gptq(weight, torch.eye(32), options)
    error = (quantized.dequantize() - weight).abs().amax(dim=1)
    steps = quantized.scales.float().flatten()
    assert (error <= steps * 1.01).all()
    assert (steps <= weight.abs().amax(dim=1) * 2 / (2**bits - 2) + 6.1e-8).all()
    assert (quantized.zeros >= 1).all()


def test_inputs_that_are_always_zero() -> None:
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    quantized = quantize_gptq(weight, hessian, GptqOptions(group_size=32))
    assert bool(quantized.dequantize()[:, 5].any())  # nothing is known of it: rounded as it is


def test_a_hessian_of_too_few_samples_is_damped() -> None:
    weight, _ = problem()
    few = torch.randn(4, COLUMNS, generator=torch.Generator().manual_seed(2))
    quantized = quantize_gptq(weight.float(), few.T @ few, GptqOptions(group_size=32))
    assert bool(quantized.dequantize().isfinite().all())


def test_a_hessian_that_is_none_is_refused() -> None:
    weight, hessian = problem()
    for wrong in (-hessian, hessian * torch.nan):
        with pytest.raises(ConfigError, match=r"larger --damp"):
            quantize_gptq(weight, wrong, GptqOptions(group_size=32))


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_the_words_of_the_file(options: GptqOptions) -> None:
    """Field by field, as section "packing" of AutoGPTQ's qlinear modules has it."""
    quantized = quantize_gptq(*problem(), options)
    tensors = gptq_tensors(quantized)
    codes, per_word, top = in_order(quantized), 32 // options.bits, 2**options.bits - 1
    for k in (0, 1, 7, 95, 200, COLUMNS - 1):
        for n in (0, 5, ROWS - 1):
            word = int(tensors["qweight"][k // per_word, n]) % 2**32
            assert word >> (options.bits * (k % per_word)) & top == codes[n, k]
            g = int(tensors["g_idx"][k])
            zero = int(tensors["qzeros"][g, n // per_word]) % 2**32
            zero = (zero >> (options.bits * (n % per_word)) & top) + 1
            meant = float(tensors["scales"][g, n]) * (int(codes[n, k]) - zero)
            assert meant == pytest.approx(float(quantized.dequantize()[n, k]), abs=1e-7)
    assert tensors["scales"].dtype == torch.float16
    assert tensors["g_idx"].dtype == tensors["qweight"].dtype == torch.int32


@pytest.mark.parametrize(("bits", "word"), [(4, 0x77777777), (8, 0x7F7F7F7F)])
def test_the_words_of_symmetric_zeros(bits: int, word: int) -> None:
    """Published values."""
    options = GptqOptions(bits, 32)  # type: ignore[arg-type]
    tensors = gptq_tensors(quantize_gptq(*problem(), options))
    assert bool((tensors["qzeros"] == word).all())
    version_2 = gptq_tensors(quantize_gptq(*problem(), options), zeros_are_less_one=False)
    more = {4: 0x11111111, 8: 0x01010101}[bits]
    assert bool((version_2["qzeros"] == word + more - 2**32).all())
