"""pytorch_model.bin: the same logits as from safetensors, and no code that a file brings is run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.weights import load_decoder
from tests.engine import tiny_models
from tests.engine.forwarding import Forwarder

IDS = list(range(3, 40))


def logits(folder: Path) -> torch.Tensor:
    checkpoint = Checkpoint.open(folder)
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"), ReferenceBackend())
    return Forwarder(decoder).logits(IDS, 9)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Path, dict[str, torch.Tensor]]:
    """The model, its folder without weights, and the weights."""
    model = tiny_models.build("llama")
    tiny_models.write(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    return model, tmp_path, weights


def write_shards(folder: Path, weights: dict[str, torch.Tensor]) -> list[str]:
    names = sorted(weights)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, of_shard in shards.items():
        torch.save({name: weights[name] for name in of_shard}, folder / shard)
    weight_map = {name: shard for shard, of_shard in shards.items() for name in of_shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return list(shards)


@pytest.mark.parametrize("layout", ["one", "shards", "old"])
def test_logits_equal_transformers(model: tuple[Any, Path, Any], layout: str) -> None:
    reference, folder, weights = model
    if layout == "shards":
        write_shards(folder, weights)
    else:
        is_archive = layout == "one"
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_archive)
    with torch.no_grad():
        wanted = reference(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(folder), wanted, atol=1e-4, rtol=1e-4)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_no_code_is_run(
    model: tuple[Any, Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, folder, weights = model
    monkeypatch.chdir(tmp_path)
    for is_archive in (True, False):
        torch.save(
            weights | {"x": Bomb()},
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=is_archive,
        )
        with pytest.raises(CheckpointError, match="running code that it brings"):
            logits(folder)
    assert not (tmp_path / "exploded").exists()


def test_damaged_files(model: tuple[Any, Path, Any]) -> None:
    _, folder, weights = model
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    whole = file.read_bytes()
    for content, problem in (
        (whole[:-3000], "not a valid PyTorch file"),
        (b"", "not a valid PyTorch file"),
        (b"hello world, this is no pickle", "not a valid PyTorch file|damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem):
            logits(folder)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="does not hold named tensors"):
        logits(folder)
    torch.save({"a": 1}, file)
    with pytest.raises(CheckpointError, match="does not hold named tensors"):
        logits(folder)


def test_a_missing_shard(model: tuple[Any, Path, Any]) -> None:
    _, folder, weights = model
    (folder / write_shards(folder, weights)[1]).unlink()
    with pytest.raises(CheckpointError, match=r"has no pytorch_model-00002-of-00002\.bin"):
        logits(folder)
