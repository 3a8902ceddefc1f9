"""Sizes of the KV cache, and the free memory that machines and containers report."""

from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.kv_cache import KVCache, auto_kv_cache_bytes, bytes_per_block, free_cpu_bytes
from engine.models import registry
from engine.models.config import DecoderConfig

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def config() -> DecoderConfig:
    # Qwen2.5-7B: 57,344 bytes of KV cache per token in 16 bits
    return registry.family("qwen2").decoder_config(
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
        }
    )


def test_bytes_per_block(config: DecoderConfig) -> None:
    assert bytes_per_block(config, 16, torch.bfloat16) == 16 * 57_344
    assert bytes_per_block(config, 1, torch.float32) == 2 * 57_344


def test_allocate(config: DecoderConfig) -> None:
    cache = KVCache.allocate(config, 3, 16, torch.bfloat16, CPU)
    assert len(cache.layers) == 28
    assert all(tensor.shape == (3 * 16, 4, 128) for tensor in cache.tensors())
    total = sum(tensor.nbytes for tensor in cache.tensors())
    assert total == 3 * bytes_per_block(config, 16, torch.bfloat16)


def test_allocate_int8(config: DecoderConfig) -> None:
    cache = KVCache.allocate(config, 3, 16, torch.bfloat16, CPU, "int8")
    total = sum(tensor.nbytes for tensor in cache.tensors())
    assert total == 3 * bytes_per_block(config, 16, torch.bfloat16, "int8")
    # a byte for each number, and two for each scale of 32 of them
    per_token = 57_344 // 2 + 57_344 // 2 // 32 * 2
    assert bytes_per_block(config, 16, torch.bfloat16, "int8") == 16 * per_token


def test_a_cache_that_cannot_be_allocated(config: DecoderConfig) -> None:
    with pytest.raises(ConfigError, match="cannot be allocated"):
        KVCache.allocate(config, 2**50, 16, torch.bfloat16, CPU)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n"}


def test_free_memory_of_a_machine(tmp_path: Path) -> None:
    assert free_cpu_bytes(write(tmp_path, MEMINFO)) == 8 * GIB


def test_free_memory_in_a_v2_container(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/"
    files = {
        "proc/self/cgroup": "0::/\n",
        folder + "memory.max": f"{3 * GIB}\n",
        folder + "memory.current": f"{2 * GIB}\n",
        folder + "memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    assert free_cpu_bytes(write(tmp_path, MEMINFO | files)) == GIB + GIB // 2
    assert free_cpu_bytes(write(tmp_path, {folder + "memory.max": "max\n"})) == 8 * GIB


def test_the_tightest_v2_ancestor_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n"}
    for name, limit in (("a/b", 5), ("a", 1)):
        folder = f"sys/fs/cgroup/{name}/"
        files[folder + "memory.max"] = str(limit * GIB)
        files[folder + "memory.current"] = "0"
        files[folder + "memory.stat"] = ""
    assert free_cpu_bytes(write(tmp_path, MEMINFO | files)) == GIB


def test_free_memory_in_a_v1_container(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/docker/"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker\n",
        folder + "memory.limit_in_bytes": str(2 * GIB),
        folder + "memory.usage_in_bytes": str(GIB),
        folder + "memory.stat": "total_inactive_file 100\n",
    }
    assert free_cpu_bytes(write(tmp_path, MEMINFO | files)) == GIB + 100


def test_memory_that_is_used_up(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/"
    files = {
        folder + "memory.max": "100",
        folder + "memory.current": "200",
        folder + "memory.stat": "",
    }
    assert free_cpu_bytes(write(tmp_path, MEMINFO | files)) == 0


def test_auto_size_on_this_machine() -> None:
    assert 0 < auto_kv_cache_bytes(CPU) <= 4 * GIB
