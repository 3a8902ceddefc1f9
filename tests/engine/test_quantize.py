"""engine/quantize.py: whole checkpoints, read back by the engine and by readers of their own."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.load_report import describe_quantization
from engine.quantize import quantize_checkpoint
from engine.quantize_job import LayerQuantized, QuantizeJob
from engine.safetensors_writer import SafetensorsWriter
from engine.weights import load_decoder
from tests.engine import gptq_files, quantized_models, seed_models, tiny_models
from tests.engine.forwarding import Forwarder
from tests.engine.references import baichuan2, chatglm, qwen_v1

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def samples(vocab_size: int = tiny_models.VOCAB_SIZE) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = (3, 90, 40, 120, 64)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


IDS = samples()[1]


def quantize(model: Path, output: Path, **options: Any) -> list[LayerQuantized]:
    """Quantize, and put the tokenizer beside it as the command does."""
    output.mkdir()
    reports: list[LayerQuantized] = []
    job: dict[str, Any] = {"token_ids": samples(), "group_size": 32, "device": "cpu"}
    job |= {"model": str(model), "output": str(output)} | options
    quantize_checkpoint(QuantizeJob(**job), reports.append)
    for name in ("tokenizer.json", "qwen.tiktoken", "tokenizer.model", "generation_config.json"):
        if (model / name).exists():
            (output / name).write_bytes((model / name).read_bytes())
    return reports


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    checkpoint = Checkpoint.open(folder)
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"), ReferenceBackend())
    return Forwarder(decoder).logits(ids, chunk_size=len(ids))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """A little less than 1 for a weight and what it became."""
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def transformers_logits(model: Any, weights: gptq_files.Weights) -> torch.Tensor:
    model.load_state_dict(weights)
    with torch.no_grad():
        wanted: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return wanted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act_order": True},
        {"symmetric": False},
        {"bits": 8, "group_size": 16},
        {"bits": 8, "act_order": True, "symmetric": False},
        {"group_size": -1},
        {"group_size": -1, "act_order": True},
    ],
    ids=repr,
)
def test_the_engine_serves_what_the_files_mean(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_models.build("qwen2", **SIZES)
    tiny_models.write(model, tmp_path / "a")
    original = model.state_dict()
    reports = quantize(tmp_path / "a", tmp_path / "b", **options)
    weights = gptq_files.dequantized(tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    wanted_format = "gptq" if options.get("symmetric", True) else "gptq_v2"
    assert written["checkpoint_format"] == wanted_format
    assert weights.keys() == original.keys()
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(weight, original[name]), name
    wanted = transformers_logits(model, weights)
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=2e-4, rtol=1e-4)
    assert [(report.layer, report.num_layers) for report in reports] == [(1, 3), (2, 3), (3, 3)]
    limit = 0.03 if options.get("bits") != 8 else 1e-4
    for report in reports:
        assert list(report.errors) == ["qkv", "output", "gate_up", "down"]
        assert all(0 < error < limit for error in report.errors.values()), report


def test_the_config(tmp_path: Path) -> None:
    tiny_models.write(tiny_models.build("qwen2", **SIZES), tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b", act_order=True, damp=0.05)
    before = json.loads((tmp_path / "a" / "config.json").read_text())
    after = json.loads((tmp_path / "b" / "config.json").read_text())
    quantization = after.pop("quantization_config")
    assert after == before
    published = {"bits": 4, "static_groups": False, "true_sequential": True, "sym": True}
    assert quantization | published == quantization
    assert (quantization["group_size"], quantization["desc_act"]) == (32, True)
    assert quantization["damp_percent"] == 0.05
    checkpoint = Checkpoint.open(tmp_path / "b")
    assert describe_quantization(checkpoint, None) == "gptq 4 bit, group 32, act-order"
    tensors = gptq_files.tensors_of(tmp_path / "b")
    zeros = [tensor for name, tensor in tensors.items() if name.endswith(".qzeros")]
    assert len(zeros) == 3 * 7
    assert all(bool((tensor == 0x77777777).all()) for tensor in zeros)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_other_families(tmp_path: Path, model_type: str) -> None:
    model = tiny_models.build(model_type, **SIZES)
    tiny_models.write(model, tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b", act_order=True)
    wanted = transformers_logits(model, gptq_files.dequantized(tmp_path / "b"))
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=2e-4, rtol=1e-4)


def test_a_tied_head_and_half_precision(tmp_path: Path) -> None:
    model = tiny_models.build("qwen2", **SIZES, tie_word_embeddings=True).to(torch.float16)
    tiny_models.write(model, tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b")
    tensors = gptq_files.tensors_of(tmp_path / "b")
    assert "lm_head.weight" not in tensors
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    assert {tensor.dtype for tensor in floats.values()} == {torch.float16}
    assert torch.equal(tensors["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_qwen_v1(tmp_path: Path) -> None:
    """Its angles and LogN depend on the sample's length."""
    _, config = seed_models.write_qwen_v1(tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b", group_size=24, act_order=True, token_ids=samples(256))
    weights = gptq_files.dequantized(tmp_path / "b")
    assert "transformer.h.2.attn.c_attn.qweight" in gptq_files.tensors_of(tmp_path / "b")
    wanted = qwen_v1.forward(weights, config, IDS, len(IDS))
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["7b", "13b"])
def test_baichuan2(tmp_path: Path, kind: str) -> None:
    original, config = seed_models.write_baichuan2(tmp_path / "a", kind)
    quantize(tmp_path / "a", tmp_path / "b", group_size=8)
    weights = gptq_files.dequantized(tmp_path / "b")
    assert torch.equal(weights["lm_head.weight"], original["lm_head.weight"])  # not normalised
    wanted = baichuan2.forward(weights, config, IDS)
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=1e-3, rtol=1e-3)


def test_chatglm(tmp_path: Path) -> None:
    """Its rows of q and k go back to the order that pairs neighbours."""
    original, config = seed_models.write_chatglm(tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b", group_size=8)
    weights = gptq_files.dequantized(tmp_path / "b")
    name = "transformer.encoder.layers.1.self_attention.query_key_value"
    assert torch.equal(weights[f"{name}.bias"], original[f"{name}.bias"])
    assert correlation(weights[f"{name}.weight"], original[f"{name}.weight"]) > 0.98
    wanted = chatglm.forward(weights, config, IDS)
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_gguf(tmp_path: Path, arch: str) -> None:
    """The result is a folder of the hub, read by transformers' class with the config in it."""
    model = tiny_models.build(arch, **SIZES)
    write_gguf(tmp_path / "m.gguf", model, arch)
    quantize(tmp_path / "m.gguf", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert (config["torch_dtype"], config["eos_token_id"]) == ("bfloat16", 2)
    config_class, model_class = tiny_models.CLASSES[arch]
    del config["quantization_config"], config["torch_dtype"]
    rebuilt: Any = model_class(config_class(**config)).eval()
    weights = gptq_files.dequantized(tmp_path / "b")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert correlation(weights[name], model.state_dict()[name]) > 0.98
    wanted = transformers_logits(rebuilt, weights)
    tiny_models.write_tokenizer(tmp_path / "b")
    torch.testing.assert_close(logits(tmp_path / "b", IDS), wanted, atol=2e-4, rtol=1e-4)


def write_gguf(path: Path, model: Any, arch: str, **tensors: Any) -> None:
    """A model of transformers as llama.cpp's converter writes it, in F32."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    names = [chr(ord("a") + i // 26) + chr(ord("a") + i % 26) for i in range(config.vocab_size)]
    writer.add_token_list(names)
    writer.add_token_types([1, 1, 3, *[1] * (config.vocab_size - 3)])
    writer.add_token_merges([])
    writer.add_eos_token_id(2)
    mapping = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.LLAMA if arch == "llama" else gguf.MODEL_ARCH.QWEN2,
        config.num_hidden_layers,
    )
    for name, tensor in model.state_dict().items():
        if (arch == "llama" and "q_proj" in name) or (arch == "llama" and "k_proj" in name):
            heads = tensor.view(-1, 2, config.head_dim // 2, config.hidden_size)
            tensor = heads.transpose(1, 2).reshape(tensor.shape)
        target = mapping.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, tensor.numpy())
    for name, tensor in tensors.items():
        writer.add_tensor(name.replace("__", "."), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_with_factors_is_refused(tmp_path: Path) -> None:
    factors = np.ones(8, dtype=np.float32)
    model = tiny_models.build("llama", **SIZES)
    write_gguf(tmp_path / "m.gguf", model, "llama", rope_freqs__weight=factors)
    with pytest.raises(CheckpointError, match="a list of factors"):
        quantize(tmp_path / "m.gguf", tmp_path / "b")


def test_models_that_are_refused(tmp_path: Path) -> None:
    tiny_models.write(tiny_models.build("qwen2_moe"), tmp_path / "moe")
    with pytest.raises(CheckpointError, match="'qwen2_moe' are not quantised: mixtures of experts"):
        quantize(tmp_path / "moe", tmp_path / "a")
    quantized_models.write(tmp_path / "gptq", quantized_models.Format())
    with pytest.raises(CheckpointError, match="is quantised already, by gptq"):
        quantize(tmp_path / "gptq", tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"group_size": 128},
            r"--group-size 128 does not divide .*, 64, 96; 32, 16, -1 \(a whole row\)",
        ),
        ({"token_ids": [[1], []]}, "an empty one"),
        ({"token_ids": [[1, 96]]}, "token id 96; the model has 96"),
    ],
)
def test_options_that_do_not_suit_the_model(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    tiny_models.write(tiny_models.build("qwen2", **SIZES), tmp_path / "a")
    with pytest.raises(ConfigError, match=problem):
        quantize(tmp_path / "a", tmp_path / "b", **options)


def test_sizes_that_fill_no_words_are_refused(tmp_path: Path) -> None:
    tiny_models.write(tiny_models.build("llama", intermediate_size=44), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"gate_proj.weight of the shape \(44, 32\)"):
        quantize(tmp_path / "a", tmp_path / "b", group_size=4)


def test_shards_and_their_index(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    writer = SafetensorsWriter(tmp_path, shard_bytes=100)
    tensors = {f"t{i}": torch.full((i, 5), float(i)) for i in range(1, 7)}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    for path in tmp_path.glob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == files
    assert index["metadata"]["total_size"] == 4 * 5 * 21
    read = gptq_files.tensors_of(tmp_path)
    assert read.keys() == tensors.keys() == index["weight_map"].keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
