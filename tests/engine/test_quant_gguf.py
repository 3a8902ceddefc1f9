"""Dequantisation against gguf-py, bit for bit, on random bytes."""

import gguf
import numpy as np
import pytest
import torch

from engine.gguf import GGML_TYPES
from engine.quant.gguf import SUPPORTED_TYPES, dequantize

SIZES = {name: (elements, size) for name, elements, size in GGML_TYPES.values()}


@pytest.mark.parametrize("type_name", sorted(SUPPORTED_TYPES))
def test_equals_gguf_py(type_name: str) -> None:
    elements, size = SIZES[type_name]
    blocks = np.random.default_rng(0).integers(0, 256, (500, size), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random bytes hold infinities and NaN as scales
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_name])
    result = dequantize(type_name, torch.from_numpy(blocks))
    assert result.shape == (500, elements)
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), expected.reshape(500, elements))


def test_types_are_ggmls() -> None:
    for type_id, (name, elements, size) in GGML_TYPES.items():
        kind = gguf.GGMLQuantizationType(type_id)
        assert kind.name == name
        if name != "Q8_K":  # internal to ggml, never in a file; gguf-py's size has sums beside it
            assert gguf.GGML_QUANT_SIZES[kind] == (elements, size)
