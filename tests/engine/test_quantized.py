"""GPTQ and AWQ checkpoints, and weights quantized while they are loaded, through the decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.backends.base import Backend
from engine.backends.cpu import CpuBackend, Int4Weight, Int8Weight
from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.kernels.forward import reason_against
from engine.kernels.panels import Panels
from engine.layers.mlp import MLP
from engine.models.decoder import Decoder
from engine.quant.groupwise import GroupwiseWeight, QuantizedWeight, StackedWeight
from engine.quant.quantize import Target, quantize
from engine.weights import load_decoder
from tests.engine import quantized_models, tiny_models
from tests.engine.forwarding import Forwarder
from tests.engine.quantized_models import Format

FORMATS = [
    Format(),
    Format(zero_biases=True),
    Format(symmetric=False),
    Format(group_size=16),
    Format(group_size=-1, symmetric=False),
    Format(act_order=True),
    Format(act_order=True, symmetric=False, bits=8),
    Format(bits=8),
    Format(bits=8, group_size=-1),
    Format(method="gptq_v2"),
    Format(method="gptq_v2", symmetric=False, act_order=True),
    Format(method="awq"),
    Format(method="awq", group_size=16),
]
BACKENDS = {
    "reference": ReferenceBackend(),
    "torch": CpuBackend(compiled=False),
    "compiled": CpuBackend(),
}
IDS = torch.randint(tiny_models.VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(3))


def load(folder: Path, backend: Backend | None = None, target: Target | None = None) -> Decoder:
    return load_decoder(
        Checkpoint.open(folder),
        torch.float32,
        torch.device("cpu"),
        backend or ReferenceBackend(),
        target,
    )


def logits(decoder: Decoder) -> torch.Tensor:
    return Forwarder(decoder).logits(IDS.tolist(), chunk_size=17)


def down(decoder: Decoder, layer: int) -> torch.Tensor | QuantizedWeight:
    mlp = decoder.layers[layer].mlp
    assert isinstance(mlp, MLP)
    return mlp.down.weight


def expected(model: Any) -> torch.Tensor:
    with torch.no_grad():
        wanted: torch.Tensor = model(IDS.unsqueeze(0)).logits[0]
    return wanted


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_logits_equal_the_dequantized_model(
    tmp_path: Path, format: Format, backend: Backend
) -> None:
    model = quantized_models.write(tmp_path, format)
    decoder = load(tmp_path, backend)
    attention = decoder.layers[0].attention
    for weight in (attention.qkv.weight, attention.output.weight):
        assert not isinstance(weight, torch.Tensor)
        assert weight.shape[1] == 64
        # packed, and not widened: the codes, and at 16 columns a group 24 bits more for each
        assert weight.num_bytes * 8 <= 128 * 64 * format.bits * (2.4 if format.bits == 4 else 2)
    torch.testing.assert_close(logits(decoder), expected(model), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_other_families(tmp_path: Path, model_type: str, method: Any) -> None:
    format = Format(method=method, group_size=16, zero_biases=method == "gptq")
    model = quantized_models.write(tmp_path, format, model_type)
    torch.testing.assert_close(logits(load(tmp_path)), expected(model), atol=2e-4, rtol=1e-4)


def test_the_words_of_symmetric_zeros(tmp_path: Path) -> None:
    """Published values: version 1 stores 7 in every nibble, version 2 stores 8."""
    for method, word in (("gptq", 0x77777777), ("gptq_v2", 0x88888888 - 2**32)):
        quantized_models.write(tmp_path / method, Format(method=method))  # type: ignore[arg-type]
        tensors = load_file(tmp_path / method / "model.safetensors")
        zeros = [tensor for name, tensor in tensors.items() if name.endswith("qzeros")]
        assert zeros
        assert all(bool((tensor == word).all()) for tensor in zeros)
    for method, other in (("gptq", "gptq_v2"), ("gptq_v2", "gptq")):
        folder = tmp_path / method
        load(folder)
        quantized_models.edit_quantization(folder, checkpoint_format=other)
        with pytest.raises(CheckpointError, match="checkpoint_format is wrong"):
            load(folder)


def test_weights_that_are_not_symmetric_follow_what_is_declared(tmp_path: Path) -> None:
    """Nothing in the file tells: each weight is then off by one step, and no error says so."""
    model = quantized_models.write(tmp_path, Format(method="gptq_v2", symmetric=False))
    good = logits(load(tmp_path))
    torch.testing.assert_close(good, expected(model), atol=2e-4, rtol=1e-4)
    quantized_models.edit_quantization(tmp_path, checkpoint_format="gptq")
    assert (logits(load(tmp_path)) - good).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"quant_method": "fp8"}, "quantised by 'fp8'"),
        ({"bits": 3}, "to 3 bits; supported are"),
        ({"group_size": 0}, "group_size = 0"),
        ({"group_size": 48}, "has the shape"),
        ({"group_size": 64}, "do not divide"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        ({"is_marlin_format": True}, "'marlin' is not supported"),
        ({"dynamic": {"-:.*": {}}}, "'dynamic'"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ version 'gemv'"),
        ({"quant_method": "awq"}, "do not divide"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    quantized_models.write(tmp_path, Format())
    quantized_models.edit_quantization(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=problem):
        load(tmp_path)


def test_damaged_modules(tmp_path: Path) -> None:
    quantized_models.write(tmp_path, Format(act_order=True, zero_biases=True))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj"
    uneven = tensors[f"{name}.g_idx"].clone()
    uneven[uneven == 1] = 0
    for changes, problem in (
        ({f"{name}.scales": None}, "lacks the tensor 'model.layers.1.mlp.down_proj.scales'"),
        ({f"{name}.g_idx": uneven}, "does not put 32 columns into each group"),
        ({f"{name}.g_idx": uneven[:5]}, "g_idx' has the shape"),
        ({f"{name}.bias": torch.ones(64)}, "unexpected tensor"),
    ):
        edited = {k: v for k, v in (tensors | changes).items() if v is not None}
        save_file(edited, file)
        with pytest.raises(CheckpointError, match=problem):
            load(tmp_path)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
def test_fused_parts_may_differ_in_kind(tmp_path: Path, backend: Backend) -> None:
    """k without act-order between q and v with it: its columns are sorted, so it means the same."""
    model = quantized_models.write(tmp_path, Format(act_order=True))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.k_proj"
    tensors[f"{name}.g_idx"] = torch.arange(64).int() // 32
    weight = model.model.layers[1].self_attn.k_proj.weight.data
    codes = tensors[f"{name}.qweight"].T.contiguous().view(torch.uint8)
    codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    scales = tensors[f"{name}.scales"].float().T.repeat_interleave(32, dim=1)
    weight.copy_((codes.float() - 8) * scales)
    save_file(tensors, file)
    decoder = load(tmp_path, backend)
    assert isinstance(decoder.layers[1].attention.qkv.weight, StackedWeight)
    if backend is BACKENDS["compiled"]:  # its inputs would be needed in two orders
        assert reason_against(decoder) == "a weight has groups that they do not have"
    torch.testing.assert_close(logits(decoder), expected(model), atol=2e-4, rtol=1e-4)


def test_the_config_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    model = quantized_models.write(tmp_path, Format())
    tiny_models.edit_config(tmp_path, quantization_config=None)
    (tmp_path / "quantize_config.json").write_text(
        '{"bits": 4, "group_size": 32, "desc_act": false, "sym": true, "damp_percent": 0.01}'
    )
    torch.testing.assert_close(logits(load(tmp_path)), expected(model), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "kind", "step"), [("int8", Int8Weight, 1 / 127), ("int4", Int4Weight, 1 / 15)]
)
def test_quantizing_on_load(tmp_path: Path, target: Target, kind: type, step: float) -> None:
    model = tiny_models.build("qwen2", hidden_size=64, intermediate_size=96)
    tiny_models.write(model, tmp_path)
    plain = load(tmp_path, None, target)
    for backend, its_kind in ((CpuBackend(compiled=False), kind), (CpuBackend(), Panels)):
        packed = load(tmp_path, backend, target)
        assert isinstance(down(packed, 2), its_kind)
        assert isinstance(packed.head.weight, torch.Tensor | Panels)
        torch.testing.assert_close(logits(packed), logits(plain), atol=2e-4, rtol=1e-4)
    weight = down(plain, 1)
    assert isinstance(weight, GroupwiseWeight)
    exact = model.model.layers[1].mlp.down_proj.weight.detach()
    groups = exact.view(64, -1, 96 if target == "int8" else 32)
    error = (weight.dequantize() - exact).view_as(groups).abs()
    reach = groups.abs().amax(-1) if target == "int8" else groups.amax(-1) - groups.amin(-1)
    rms = error.square().mean(-1).sqrt()
    assert (rms <= reach * step * 0.5).all()  # half a step at most, but for clipped outliers


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_quantizing_odd_rows(target: Target) -> None:
    spike = torch.zeros(64)
    spike[7] = 3.0
    ramp = torch.linspace(-1, 1, 64)
    weight = torch.stack(
        [0 * ramp, 0 * ramp + 0.1, 0 * ramp - 5, 0.1 + ramp * 1e-6, spike, ramp, ramp * 1e-6]
    )
    error = (quantize(weight, target).dequantize() - weight).abs()
    reach = weight.abs().amax(dim=1, keepdim=True)
    assert (error <= reach / 25 + 1e-7).all()
    assert (error[1:4] <= reach[1:4] / 250).all()


def test_quantizing_on_load_refuses(tmp_path: Path) -> None:
    quantized_models.write(tmp_path / "a", Format())
    with pytest.raises(ConfigError, match="is for plain weights"):
        load(tmp_path / "a", None, "int8")
    tiny_models.write(tiny_models.build("qwen2", intermediate_size=40), tmp_path / "b")
    with pytest.raises(ConfigError, match="multiple of 32"):
        load(tmp_path / "b", None, "int4")
