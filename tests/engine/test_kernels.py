"""The compiled kernels' weights and products, in each variant of this CPU, against float64."""

import ctypes
import platform
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.gguf import GGML_TYPES, GgufTensor
from engine.kernels import abi, library
from engine.kernels.panels import Panels, pack, pack_plain
from engine.quant.gguf import GROUPED_TYPES, dequantize, read_packed
from engine.quant.groupwise import GroupwiseWeight, pack_nibbles

pytestmark = pytest.mark.usefixtures("one_thread")
VARIANTS = library.variants()
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
UNIT = 32  # columns of x that share a scale where it is int8
# 1 to 6 rows are a tile or less, with 65 packed weights are unpacked first, and 256 are a block
NUM_INPUTS = st.one_of(st.integers(1, 14), st.integers(60, 70), st.integers(1, 140))


def variant(name: str) -> ctypes.CDLL:
    found = library.load_variant(name)
    assert found is not None
    return found


# ---- which library ----


def test_every_variant_is_built() -> None:
    names = ["generic"]
    if platform.machine() == "x86_64":
        names += ["x86_64_v3", "x86_64_v4_vnni", "x86_64_v4_bf16"]
    for name in names:
        assert library.load_variant(name) is not None, f"{name} was not compiled"
    assert library.load() is library.load_variant(VARIANTS[0])


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [
        (
            "AVX512",
            {"avx512_bf16", "avx512_vnni"},
            ["x86_64_v4_bf16", "x86_64_v4_vnni", "x86_64_v3", "generic"],
        ),
        ("AVX512", {"avx512_vnni"}, ["x86_64_v4_vnni", "x86_64_v3", "generic"]),
        ("AVX512", {"avx512_bf16"}, ["x86_64_v3", "generic"]),
        ("AVX512", set(), ["x86_64_v3", "generic"]),
        ("AVX2", {"avx512_bf16", "avx512_vnni"}, ["x86_64_v3", "generic"]),
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


@pytest.mark.parametrize("name", VARIANTS)
def test_structs_are_those_of_the_kernels(name: str) -> None:
    sizes = (ctypes.c_int64 * len(abi.STRUCTS))()
    variant(name).struct_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(struct) for struct in abi.STRUCTS]


# ---- weights to multiply with ----


def codes_of(
    rows: int, columns: int, bits: int, group_size: int, zeros: str, dtype: torch.dtype, seed: int
) -> GroupwiseWeight:
    """A weight with codes of 4 to 8 bits, the largest of them included; with an order where the
    seed is odd.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=generator).to(torch.uint8)
    codes[-1, -1] = 2**bits - 1
    shape = (rows, columns // group_size)
    kinds = {
        "same": torch.full(shape, 2 ** (bits - 1), dtype=torch.uint8),
        "odd": torch.full(shape, 2 ** (bits - 1) - 1, dtype=torch.uint8),
        "whole": torch.randint(2**bits, shape, generator=generator).to(torch.uint8),
        "floats": torch.rand(shape, generator=generator) * 2**bits - 1,
        "near": torch.rand(shape, generator=generator) + 2 ** (bits - 1),
    }
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    return GroupwiseWeight(
        pack_nibbles(codes) if bits == 4 else codes,
        (torch.rand(shape, generator=generator) + 0.1).to(dtype),
        kinds[zeros],
        4 if bits == 4 else 8,
        group_size,
        order if seed % 2 else None,
    )


def packed(weight: GroupwiseWeight, dtype: torch.dtype, name: str) -> Panels:
    panels = pack(weight, dtype, variant(name))
    assert panels is not None
    return panels


def plain(weight: torch.Tensor, name: str) -> Panels:
    panels = pack_plain(weight, variant(name))
    assert panels is not None
    return panels


def multiply(
    panels: Panels | list[Panels],
    x: torch.Tensor,
    is_bfloat16: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the kernels compute before anything is rounded to x's dtype, in their own order."""
    parts = panels if isinstance(panels, list) else [panels]
    structs = (abi.Weight * len(parts))(*(part.struct for part in parts))
    linear = abi.Linear(len(parts), structs, None if bias is None else bias.data_ptr())
    out = torch.full((len(x), sum(part.struct.rows for part in parts)), float("nan"))
    parts[0].library.multiply_rows(
        ctypes.byref(linear), is_bfloat16, x.contiguous().data_ptr(), len(x), out.data_ptr()
    )
    return out


def reach(weight: GroupwiseWeight) -> torch.Tensor:
    """(code + zero) * scale, columns as the inputs: numbers before anything cancels out."""
    positive = replace(
        weight, zeros=-weight.zeros.float().abs(), scales=weight.scales.float().abs()
    )
    return positive.dequantize().double()


def int8_rows(x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """What inputs.h makes of x, in float64, columns in the order of `order`: codes of 8 bits with
    one scale for each 32 columns.
    """
    units = (x if order is None else x[:, order]).float().reshape(len(x), -1, UNIT)
    most = units.abs().amax(-1, keepdim=True)
    # 127 / most would be the product with a rounded reciprocal
    inverse = torch.where(most > 0, torch.tensor(127.0).div(most), 0.0)
    codes = (units * inverse).round()
    assert codes.abs().max() <= 127
    return (codes.double() * (most / 127).double()).flatten(1)


def stored(weight: GroupwiseWeight, panels: Panels) -> torch.Tensor:
    """The numbers that `pack` keeps of a weight, in float64, columns as they are stored."""
    kept = torch.float16 if panels.struct.scale_bytes == 2 else torch.float32
    codes = weight.unpacked().view(len(weight.scales), -1, weight.group_size).double()
    scales = weight.scales.to(kept).double().unsqueeze(-1)
    if panels.struct.has_offsets:
        offsets = (-weight.zeros.float() * weight.scales.float()).to(kept)
        return (codes * scales + offsets.double().unsqueeze(-1)).flatten(1)
    return ((codes - weight.zeros.double().unsqueeze(-1)) * scales).flatten(1)


def random_rows(num_rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(seed))


# ---- products ----

CODES = st.builds(
    lambda rows, sizes, bits, zeros, dtype, seed: codes_of(
        rows, sizes[0], bits, sizes[1], zeros, dtype, seed
    ),
    st.integers(1, 70),
    st.sampled_from(
        [(32, 32), (64, 16), (96, 32), (128, 64), (256, 128), (96, 96), (576, 16), (544, 32)]
    ),
    st.sampled_from([4, 5, 6, 8]),
    st.sampled_from(["same", "odd", "whole", "floats"]),
    st.sampled_from([torch.float16, FLOAT32]),
    st.integers(0, 2**31),
)


def check_float_rows(weight: GroupwiseWeight, x: torch.Tensor, name: str) -> None:
    panels = packed(weight, FLOAT32, name)
    wanted = x.double() @ weight.dequantize().double().T
    bound = 2**-19 * (x.double().abs() @ reach(weight).T)
    assert ((panels.multiply(x).double() - wanted).abs() <= bound).all()
    assert torch.equal(multiply(panels, x), panels.multiply(x))


def check_int8_rows(weight: GroupwiseWeight, x: torch.Tensor, name: str) -> None:
    """Against the kernels' own arithmetic in float64."""
    panels = packed(weight, BFLOAT16, name)
    assert panels.struct.bits == (4 if weight.bits == 4 else int(weight.codes.max()).bit_length())
    rounded, numbers = int8_rows(x.bfloat16(), weight.order), stored(weight, panels)
    wanted = rounded @ numbers.T
    columns = reach(weight) if weight.order is None else reach(weight)[:, weight.order]
    bound = 3e-6 * (rounded.abs() @ columns.T)
    got = multiply(panels, x.bfloat16().float(), is_bfloat16=True)
    assert ((got.double() - wanted).abs() <= bound).all()
    assert torch.equal(panels.multiply(x.bfloat16()), got.bfloat16())


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(weight=CODES, num_inputs=NUM_INPUTS, seed=st.integers(0, 2**31))
def test_products_of_codes(name: str, weight: GroupwiseWeight, num_inputs: int, seed: int) -> None:
    x = random_rows(num_inputs, weight.shape[1], seed)
    check_float_rows(weight, x, name)
    check_int8_rows(weight, x, name)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_products_of_every_kind_of_codes(name: str, bits: int) -> None:
    for group_size in (16, 32, 64, 192):
        for zeros in ("same", "whole"):
            weight = codes_of(34, 192, bits, group_size, zeros, torch.float16, group_size + bits)
            for num_inputs in (1, 7, 65):
                x = random_rows(num_inputs, 192, num_inputs)
                check_float_rows(weight, x, name)
                check_int8_rows(weight, x, name)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.one_of(st.integers(1, 100), st.integers(500, 600)),
    dtype=st.sampled_from([FLOAT32, BFLOAT16]),
    num_inputs=NUM_INPUTS,
    seed=st.integers(0, 2**31),
)
def test_products_of_plain_weights(
    name: str, rows: int, columns: int, dtype: torch.dtype, num_inputs: int, seed: int
) -> None:
    """bfloat16 numbers are multiplied exactly and added in float32."""
    weight = random_rows(rows, columns, seed).to(dtype)
    x = random_rows(num_inputs, columns, seed + 1).to(dtype)
    panels = plain(weight, name)
    wanted = x.double() @ weight.double().T
    bound = 2**-19 * (x.double().abs() @ weight.double().abs().T)
    got = multiply(panels, x.float(), dtype == BFLOAT16)
    assert ((got.double() - wanted).abs() <= bound).all()
    assert torch.equal(panels.multiply(x), got.to(dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_int8_rows_are_near_the_dequantized_product(name: str) -> None:
    """1% for inputs as they are between a model's layers, whatever the codes are."""
    x = random_rows(70, 512, 0).bfloat16()
    for bits in (4, 5, 6, 8):
        for group_size, zeros in ((16, "near"), (32, "same"), (128, "odd"), (512, "near")):
            weight = codes_of(96, 512, bits, group_size, zeros, FLOAT32, bits + group_size)
            exact = x.float() @ weight.dequantize().T
            error = packed(weight, BFLOAT16, name).multiply(x).float() - exact
            assert (error.norm(dim=1) <= 0.01 * exact.norm(dim=1)).all()


# ---- all kinds of weights ----

Make = Callable[[int, str], Panels]  # a weight of 256 columns with so many rows, and the variant


def plain_maker(dtype: torch.dtype) -> Make:
    return lambda rows, name: plain(random_rows(rows, 256, rows).to(dtype), name)


def packed_maker(bits: int, group_size: int, zeros: str, dtype: torch.dtype, seed: int = 0) -> Make:
    return lambda rows, name: packed(
        codes_of(rows, 256, bits, group_size, zeros, FLOAT32, seed), dtype, name
    )


KINDS: dict[str, tuple[Make, bool]] = {  # and whether rows are those of a bfloat16 model
    "float32": (plain_maker(FLOAT32), False),
    "bfloat16": (plain_maker(BFLOAT16), True),
    "4 bits": (packed_maker(4, 64, "same", BFLOAT16, 1), True),
    "4 bits with offsets": (packed_maker(4, 16, "floats", BFLOAT16), True),
    "5 bits": (packed_maker(5, 32, "floats", BFLOAT16), True),
    "6 bits": (packed_maker(6, 16, "same", BFLOAT16), True),
    "8 bits": (packed_maker(8, 256, "whole", BFLOAT16), True),
    "4 bits, float32 rows": (packed_maker(4, 32, "whole", FLOAT32), False),
    "8 bits, float32 rows": (packed_maker(8, 16, "same", FLOAT32, 1), False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_does_not_depend_on_those_beside_it(name: str, kind: str) -> None:
    """Bit for bit: alone, in another place, in tiles of any size and in the second block of 256."""
    make, is_bfloat16 = KINDS[kind]
    panels = make(41, name)
    x = random_rows(300, 256, 0)
    together = multiply(panels, x, is_bfloat16)
    for i in (0, 1, 5, 63, 64, 255, 256, 299):
        assert torch.equal(multiply(panels, x[i : i + 1], is_bfloat16)[0], together[i])
    for start, stop in ((0, 64), (3, 68), (7, 14), (20, 22), (100, 233), (256, 300), (1, 258)):
        part = multiply(panels, x[start:stop], is_bfloat16)
        assert torch.equal(part, together[start:stop])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:97]
    assert torch.equal(multiply(panels, x[order], is_bfloat16), together[order])


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 70),
    num_inputs=NUM_INPUTS,
    data=st.data(),
)
def test_any_rows_are_as_they_are_alone(
    name: str, kind: str, rows: int, num_inputs: int, data: st.DataObject
) -> None:
    make, is_bfloat16 = KINDS[kind]
    panels = make(rows, name)
    x = random_rows(num_inputs, 256, rows)
    together = multiply(panels, x, is_bfloat16)
    some = data.draw(st.lists(st.integers(0, num_inputs - 1), min_size=1, max_size=20))
    assert torch.equal(multiply(panels, x[some], is_bfloat16), together[some])
    assert torch.equal(multiply(panels, x[some[:1]], is_bfloat16), together[some[:1]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_bias_and_several_parts(name: str, kind: str) -> None:
    """Parts are as if each was alone, and the bias is added to what they give."""
    make, is_bfloat16 = KINDS[kind]
    parts = [make(rows, name) for rows in (7, 33, 16)]
    bias = random_rows(1, 56, 3)[0]
    for num_inputs in (1, 9, 66):
        x = random_rows(num_inputs, 256, 2)
        alone = torch.cat([multiply(part, x, is_bfloat16) for part in parts], dim=1)
        assert torch.equal(multiply(parts, x, is_bfloat16), alone)
        assert torch.equal(multiply(parts, x, is_bfloat16, bias), alone + bias)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_rows_at_all(name: str) -> None:
    for make, is_bfloat16 in KINDS.values():
        assert multiply(make(5, name), torch.empty(0, 256), is_bfloat16).shape == (0, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_not_finite_in_a_row_stays_in_it(name: str, kind: str, value: float) -> None:
    make, is_bfloat16 = KINDS[kind]
    panels = make(20, name)
    for num_inputs in (5, 67):
        x = random_rows(num_inputs, 256, 0)
        clean = multiply(panels, x, is_bfloat16)
        x[2, 107] = value
        broken = multiply(panels, x, is_bfloat16)
        assert not broken[2].isfinite().any()
        others = [i for i in range(num_inputs) if i != 2]
        assert torch.equal(broken[others], clean[others])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_not_finite_in_a_weight_stays_in_its_row(name: str, value: float) -> None:
    """In numbers or scales; and looking such a row up shows it."""
    numbers = random_rows(20, 256, 0)
    broken_numbers = numbers.clone()
    broken_numbers[3, 107] = value
    cases = [
        (plain(numbers.to(dtype), name), plain(broken_numbers.to(dtype), name), dtype == BFLOAT16)
        for dtype in (FLOAT32, BFLOAT16)
    ]
    for zeros in ("same", "floats"):
        weight = codes_of(20, 256, 8, 32, zeros, FLOAT32, 0)
        weight = replace(weight, scales=weight.scales * 1e6)  # too much for float16
        scales = weight.scales.clone()
        scales[3, 3] = value
        for dtype in (FLOAT32, BFLOAT16):
            both = [packed(each, dtype, name) for each in (weight, replace(weight, scales=scales))]
            cases.append((both[0], both[1], dtype == BFLOAT16))
    others = [i for i in range(20) if i != 3]
    for clean, broken, is_bfloat16 in cases:
        for num_inputs in (5, 67):
            x = random_rows(num_inputs, 256, 1)
            got = multiply(broken, x, is_bfloat16)
            assert not got[:, 3].isfinite().any()
            assert torch.equal(got[:, others], multiply(clean, x, is_bfloat16)[:, others])
        assert not broken.take_rows(torch.tensor([3]), FLOAT32).isfinite().all()


# ---- rows that are looked up, and numbers ----


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize(("group_size", "seed"), [(16, 0), (32, 1), (64, 0)])
def test_rows_are_looked_up(name: str, bits: int, group_size: int, seed: int) -> None:
    weight = codes_of(50, 64, bits, group_size, "floats", FLOAT32, seed)
    panels = packed(weight, FLOAT32, name)
    rows = torch.tensor([3, 49, 3, 0, 15, 16, *range(50)])
    exact = weight.dequantize()[rows]
    bound = 2**-22 * reach(weight)[rows]
    assert ((panels.take_rows(rows, FLOAT32) - exact).abs() <= bound).all()
    for dtype in (BFLOAT16, torch.float16):
        taken = panels.take_rows(rows, dtype)
        assert taken.dtype == dtype
        torch.testing.assert_close(taken.float(), exact, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("columns", [1, 31, 32, 77])
def test_plain_rows_are_looked_up(name: str, dtype: torch.dtype, columns: int) -> None:
    weight = random_rows(50, columns, columns).to(dtype)
    panels = plain(weight, name)
    assert panels.shape == (50, columns)
    rows = torch.tensor([3, 49, 3, 0, 15, 16, *range(50)])
    assert torch.equal(panels.take_rows(rows, dtype), weight[rows])
    assert torch.equal(panels.take_rows(rows[1:2], FLOAT32), weight[rows[1:2]].float())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_half_is_read(name: str) -> None:
    """Subnormals, infinities and NaN included: all numbers of 16 bits as scales."""
    scales = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    scales = scales.view(-1, 64)
    codes = torch.full((len(scales), 64 * 32), 1, dtype=torch.uint8)
    zeros = torch.zeros(scales.shape, dtype=torch.uint8)
    panels = packed(GroupwiseWeight(codes, scales, zeros, 8, 32), FLOAT32, name)
    got = panels.take_rows(torch.arange(len(scales)), FLOAT32)[:, ::32]
    torch.testing.assert_close(got, scales.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_is_rounded_as_torch_does(name: str) -> None:
    """Ties, infinities and NaN included; but numbers too small to be normal may become zero."""
    patterns = torch.arange(0, 2**32, 65_521, dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(2**16, dtype=torch.int32) << 16) | 0x8000
    numbers = torch.cat((patterns, ties)).view(FLOAT32).unsqueeze(1)
    got = multiply(plain(torch.ones(1, 1, dtype=BFLOAT16), name), numbers, is_bfloat16=True)
    wanted = numbers.bfloat16().float()
    wanted[numbers.abs() < 2**-126] = 0
    got[numbers.abs() < 2**-126] = 0
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_int8_rows_of_any_size(name: str) -> None:
    """A unit's scale follows its own numbers, of which the largest keep all their digits."""
    weight = codes_of(16, 96, 8, 32, "odd", FLOAT32, 0)
    panels = packed(weight, BFLOAT16, name)
    x = torch.zeros(4, 96)
    x[0, :32] = 1e-30 * random_rows(1, 32, 0)
    x[1, 40], x[1, 70] = 1e30, -1e-20
    x[2, ::2] = -127.0
    wanted = int8_rows(x, weight.order) @ stored(weight, panels).T
    got = multiply(panels, x, is_bfloat16=True)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    assert not got[3].any()


# ---- what is packed, and how ----


@pytest.mark.parametrize(("columns", "group_size"), [(48, 16), (64, 8), (96, 48), (80, 80)])
def test_sizes_that_the_kernels_lack(columns: int, group_size: int) -> None:
    weight = codes_of(4, columns, 8, group_size, "same", torch.float16, 0)
    assert pack(weight, FLOAT32, variant(VARIANTS[0])) is None


def test_float16_is_not_packed() -> None:
    assert pack_plain(torch.zeros(4, 32, dtype=torch.float16), variant(VARIANTS[0])) is None


def test_scales_are_halved_where_that_is_close() -> None:
    """With bfloat16 activations 2**-11 of a number may go, else nothing."""
    weight = codes_of(4, 64, 4, 32, "same", FLOAT32, 0)
    for scales, dtype, scale_bytes in (
        (weight.scales, BFLOAT16, 2),
        (weight.scales, FLOAT32, 4),
        (weight.scales.half().float(), FLOAT32, 2),
        (weight.scales * 1e-6, BFLOAT16, 4),  # too small for float16's full precision
        (weight.scales * 1e6, BFLOAT16, 4),
    ):
        panels = packed(replace(weight, scales=scales), dtype, VARIANTS[0])
        assert (panels.struct.scale_bytes, panels.struct.has_offsets) == (scale_bytes, 0)
    uneven = torch.tensor([[0.0, 3.25]]).expand(4, 2)
    for scales, zeros, dtype, scale_bytes in (
        (weight.scales, uneven, BFLOAT16, 2),
        (weight.scales, uneven, FLOAT32, 4),
        (torch.full((4, 2), 0.5), uneven, FLOAT32, 2),
        (torch.full((4, 2), 0.5), uneven + 1e-4, FLOAT32, 4),  # the offset is not exact
    ):
        panels = packed(replace(weight, scales=scales, zeros=zeros), dtype, VARIANTS[0])
        assert (panels.struct.scale_bytes, panels.struct.has_offsets) == (scale_bytes, 1)


@pytest.mark.parametrize(
    ("largest", "zero", "bits", "has_offsets"),
    [
        (255, 128.0, 8, 0),
        (255, 127.0, 8, 1),
        (255, 0.0, 8, 1),
        (255, 256.0, 8, 1),
        (255, -1.0, 8, 1),
        (255, 128.5, 8, 1),
        (63, 32.0, 6, 0),
        (31, 16.0, 5, 0),
        (15, 8.0, 4, 0),
        (15, 7.0, 4, 1),
        (15, 16.0, 4, 1),  # 5 bits would be more than its codes need
        (7, 4.0, 4, 0),  # as 3 bits of a GGUF file: codes are moved by 4
        (7, 0.0, 4, 0),
        (8, 0.0, 4, 1),
    ],
)
def test_one_zero_point_for_all_needs_no_offsets(
    largest: int, zero: float, bits: int, has_offsets: int
) -> None:
    """Where codes can be moved so that it is the middle of what their bits can say."""
    weight = codes_of(4, 64, 8, 32, "same", FLOAT32, 0)
    codes = weight.codes.clamp(max=largest)
    codes[0, 0], codes[0, 1] = 0, largest
    weight = replace(weight, codes=codes, zeros=torch.full((4, 2), zero))
    panels = packed(weight, FLOAT32, VARIANTS[0])
    assert (panels.struct.bits, panels.struct.has_offsets) == (bits, has_offsets)
    taken = panels.take_rows(torch.arange(4), FLOAT32)
    torch.testing.assert_close(taken, weight.dequantize(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_bytes_of_a_packed_weight(bits: int) -> None:
    """Its codes and two bytes for a scale, with rows filled up to 16."""
    weight = codes_of(40, 128, bits, 32, "same", torch.float16, 1)
    panels = packed(weight, BFLOAT16, VARIANTS[0])
    assert panels.memory.nbytes == 48 * (128 * bits // 8 + 4 * 2)
    assert panels.num_bytes == panels.memory.nbytes + 128 * 4
    assert panels.shape == weight.shape


def test_more_rows_than_are_packed_at_once() -> None:
    weight = codes_of(2100, 32, 5, 32, "floats", FLOAT32, 0)
    rows = torch.tensor([0, 1023, 1024, 2047, 2048, 2099])
    taken = packed(weight, FLOAT32, VARIANTS[0]).take_rows(rows, FLOAT32)
    torch.testing.assert_close(taken, weight.dequantize()[rows], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_ranks_columns_of_a_weight_with_an_order(name: str) -> None:
    """engine/sharding.py: they multiply the inputs of all ranks."""
    weight = replace(
        codes_of(20, 64, 4, 32, "whole", FLOAT32, 0),
        order=torch.randperm(96, generator=torch.Generator().manual_seed(0))[:64],
    )
    x = random_rows(3, 96, 0)
    assert weight.order is not None
    wanted = x[:, weight.order] @ replace(weight, order=None).dequantize().T
    torch.testing.assert_close(
        packed(weight, FLOAT32, name).multiply(x), wanted, rtol=1e-5, atol=1e-4
    )


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
NUM_BITS = {"Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}


@pytest.mark.parametrize("type_name", sorted(GROUPED_TYPES))
def test_gguf_types_lose_nothing(type_name: str) -> None:
    """Packed and looked up as they are, against gguf-py's numbers (test_quant_gguf.py)."""
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
    weight = read_packed(tensor)
    most = exact.abs().view(rows, -1, weight.group_size).amax(-1).clamp_min(1e-12)
    most = most.repeat_interleave(weight.group_size, dim=1)
    assert ((weight.dequantize() - exact).abs() <= 2e-6 * most).all()
    panels = packed(weight, FLOAT32, VARIANTS[0])
    assert panels.struct.bits == NUM_BITS.get(type_name, 4)
    everything = torch.arange(rows)
    assert ((panels.take_rows(everything, FLOAT32) - exact).abs() <= 2e-6 * most).all()
    halves_fit = type_name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    assert panels.struct.scale_bytes == (2 if halves_fit else 4)
    # beside bfloat16 activations scales may be rounded, by less than the weights would be
    rounded = packed(weight, BFLOAT16, VARIANTS[0]).take_rows(everything, FLOAT32)
    assert ((rounded - exact).abs() <= 2**-9 * most).all()
