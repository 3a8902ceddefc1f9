"""The compiled kernels, in each variant that this CPU runs, against float64."""

import ctypes
import platform

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.gguf import GGML_TYPES, GgufTensor
from engine.kernels import library
from engine.kernels.groupwise import CompiledWeight
from engine.quant.gguf import GROUPED_TYPES, dequantize, read_packed
from engine.quant.groupwise import Bits, GroupwiseWeight, pack_nibbles

VARIANTS = library.variants()


def variant(name: str) -> ctypes.CDLL:
    found = library.load_variant(name)
    assert found is not None
    return found


def test_every_variant_is_built() -> None:
    names = ["generic"]
    if platform.machine() == "x86_64":
        names += ["x86_64_v3", "x86_64_v4", "x86_64_v4_bf16"]
    for name in names:
        assert library.load_variant(name) is not None, f"{name} was not compiled"
    assert library.load() is library.load_variant(VARIANTS[0])


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [
        ("AVX512", {"avx512_bf16"}, ["x86_64_v4_bf16", "x86_64_v4", "x86_64_v3", "generic"]),
        ("AVX512", set(), ["x86_64_v4", "x86_64_v3", "generic"]),
        ("AVX2", {"avx512_bf16"}, ["x86_64_v3", "generic"]),
        ("DEFAULT", set(), ["generic"]),
        ("VSX", set(), ["generic"]),
    ],
)
def test_variants_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capability: str, flags: set[str], expected: list[str]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(flags))
    assert library.variants() == expected


def test_without_any_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_variant", lambda name: None)
    assert library.load.__wrapped__() is None


def weight(
    rows: int, columns: int, bits: Bits, group_size: int, zeros: str, dtype: torch.dtype, seed: int
) -> GroupwiseWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=generator).to(torch.uint8)
    shape = (rows, columns // group_size)
    kinds = {
        "same": torch.full(shape, 2 ** (bits - 1), dtype=torch.uint8),
        "whole": torch.randint(2**bits, shape, generator=generator).to(torch.uint8),
        "floats": torch.rand(shape, generator=generator) * 2**bits - 1,
    }
    return GroupwiseWeight(
        codes if bits == 8 else pack_nibbles(codes),
        (torch.rand(shape, generator=generator) + 0.1).to(dtype),
        kinds[zeros],
        bits,
        group_size,
        torch.randperm(columns, generator=generator) if seed % 2 else None,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(VARIANTS),
    st.integers(1, 40),
    st.sampled_from([(32, 32), (64, 16), (96, 32), (128, 64), (256, 128), (96, 96)]),
    st.sampled_from([4, 8]),
    st.sampled_from(["same", "whole", "floats"]),
    st.sampled_from([torch.float16, torch.float32]),
    st.integers(1, 35),
    st.integers(0, 2**31),
)
def test_products(
    name: str,
    rows: int,
    sizes: tuple[int, int],
    bits: Bits,
    zeros: str,
    dtype: torch.dtype,
    num_inputs: int,
    seed: int,
) -> None:
    """Any number of rows on either side, in both ways of multiplying."""
    columns, group_size = sizes
    plain = weight(rows, columns, bits, group_size, zeros, dtype, seed)
    compiled = CompiledWeight.pack(plain, variant(name))
    assert compiled is not None
    x = torch.randn(num_inputs, columns, generator=torch.Generator().manual_seed(seed))
    exact = plain.dequantize().double()
    wanted = x.double() @ exact.T
    bound = 1e-5 * (x.double().abs() @ exact.abs().T) + 1e-12
    assert ((compiled.multiply(x).double() - wanted).abs() <= bound).all()
    rounded = compiled.multiply(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    error = (rounded.double() - x.bfloat16().double() @ exact.T).abs()
    assert (error <= 2**-6 * (x.double().abs() @ exact.abs().T)).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_looked_up(name: str, bits: Bits) -> None:
    plain = weight(50, 64, bits, 32, "floats", torch.float32, 0)
    compiled = CompiledWeight.pack(plain, variant(name))
    assert compiled is not None
    rows = torch.tensor([3, 49, 3, 0])
    exact = plain.dequantize()[rows]
    torch.testing.assert_close(compiled.take_rows(rows, torch.float32), exact)
    for dtype in (torch.bfloat16, torch.float16):
        taken = compiled.take_rows(rows, dtype)
        assert taken.dtype == dtype
        torch.testing.assert_close(taken.float(), exact, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_is_rounded_as_torch_does(name: str) -> None:
    """Ties, infinities and NaN included; scales of the file may be anything."""
    patterns = torch.arange(0, 2**32, 65_521, dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(2**16, dtype=torch.int32) << 16) | 0x8000
    scales = torch.cat((patterns, ties)).view(torch.float32)
    scales = scales[: len(scales) // 2 * 2].view(-1, 2)
    codes = torch.full((len(scales), 64), 1, dtype=torch.uint8)
    zeros = torch.zeros_like(scales, dtype=torch.uint8)
    compiled = CompiledWeight.pack(GroupwiseWeight(codes, scales, zeros, 8, 32), variant(name))
    assert compiled is not None
    got = compiled.dequantize(torch.bfloat16)
    wanted = (scales + 0.0).bfloat16().repeat_interleave(32, dim=1)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_not_finite_stays_in_its_row(name: str) -> None:
    compiled = CompiledWeight.pack(weight(20, 64, 4, 32, "same", torch.float16, 0), variant(name))
    assert compiled is not None
    for num_inputs in (5, 40):
        x = torch.randn(num_inputs, 64)
        clean = compiled.multiply(x)
        x[2, 7] = float("nan")
        broken = compiled.multiply(x)
        assert broken[2].isnan().all()
        others = [i for i in range(num_inputs) if i != 2]
        assert torch.equal(broken[others], clean[others])


@pytest.mark.parametrize(("columns", "group_size"), [(48, 16), (64, 8), (96, 48)])
def test_sizes_that_the_kernels_lack(columns: int, group_size: int) -> None:
    plain = weight(4, columns, 8, group_size, "same", torch.float16, 0)
    assert CompiledWeight.pack(plain, variant("generic")) is None


# where a block has its scale and, second, its offset: numbers that are not to be random bits
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@pytest.mark.parametrize("type_name", sorted(GROUPED_TYPES))
def test_gguf_types_lose_nothing(type_name: str) -> None:
    """Packed and multiplied as they are, against gguf-py's numbers (test_quant_gguf.py)."""
    elements, size = {n: (e, s) for n, e, s in GGML_TYPES.values()}[type_name]
    rows, columns = 40, 512
    shape = (rows * columns // elements, size)
    blocks = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for start in HALVES.get(type_name, (0,)):
        numbers = np.random.default_rng(start).normal(0, 0.01, len(blocks)).astype(np.float16)
        numbers[start % 5 :: 7] = 0  # groups without a scale, which may still have an offset
        blocks[:, start : start + 2] = numbers.view(np.uint8).reshape(-1, 2)
    exact = dequantize(type_name, torch.from_numpy(blocks)).view(rows, columns)
    tensor = GgufTensor("w", (rows, columns), type_name, elements, size, blocks.ravel())
    packed = read_packed(tensor)
    reach = exact.abs().view(rows, -1, packed.group_size).amax(-1).clamp_min(1e-12)
    bound = 2e-6 * reach.repeat_interleave(packed.group_size, dim=1)
    assert ((packed.dequantize() - exact).abs() <= bound).all()
    compiled = CompiledWeight.pack(packed, variant(VARIANTS[0]))
    assert compiled is not None
    assert ((compiled.dequantize(torch.float32) - exact).abs() <= bound).all()
    halves_fit = type_name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    assert (compiled.scales.dtype == torch.float16) == halves_fit
