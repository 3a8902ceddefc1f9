"""What reaches each matrix, compared with hooks on the modules of transformers."""

from pathlib import Path

import pytest
import torch

from engine.calibration import Calibration, RecordingBackend
from engine.checkpoint import Checkpoint
from engine.layers.linear import Linear
from engine.models.decoder import Decoder
from engine.weights import load_decoder
from tests.engine import tiny_models

HOOKS = {
    "qkv": "self_attn.q_proj",
    "output": "self_attn.o_proj",
    "gate_up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
SAMPLES = [
    torch.randint(tiny_models.VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (1, 2, 17, 40)
]


def load(folder: Path) -> tuple[Decoder, RecordingBackend]:
    backend = RecordingBackend()
    checkpoint = Checkpoint.open(folder)
    return load_decoder(checkpoint, torch.float32, torch.device("cpu"), backend), backend


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral"])
def test_inputs_are_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    options = {"sliding_window": 8} if model_type == "mistral" else {}
    model = tiny_models.build(model_type, **options)
    tiny_models.write(model, tmp_path)
    decoder, backend = load(tmp_path)
    seen: dict[str, list[torch.Tensor]] = {}
    for i in range(len(decoder.layers)):
        for part, name in HOOKS.items():
            inputs = seen.setdefault(f"{i}.{part}", [])
            module = model.get_submodule(f"model.layers.{i}.{name}")
            module.register_forward_pre_hook(lambda _, args, to=inputs: to.append(args[0][0]))
    with torch.no_grad():
        for sample in SAMPLES:
            model(torch.tensor([sample]))
    calibration = Calibration(decoder, backend, SAMPLES)
    for i, layer in enumerate(decoder.layers):
        for part in HOOKS:
            linear = layer.parts()[part]
            assert isinstance(linear, Linear)
            rows = torch.cat(seen[f"{i}.{part}"])
            assert len(rows) == sum(map(len, SAMPLES))
            wanted = rows.T @ rows / len(rows)
            moments = calibration.input_moments(layer, linear)
            torch.testing.assert_close(moments, wanted, atol=1e-4, rtol=1e-4)
        calibration.advance(layer)
