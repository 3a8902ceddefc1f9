"""Loading takes at most 1.15 x the memory of the weights as they are served.

Counted are a process's own pages (RssAnon): what cannot be given back without losing it. Pages of
the mapped weight files (RssFile) are the kernel's to drop, and are not. A child process loads;
its parent reads /proc/PID/status without pause, from before the checkpoint is opened until it is
loaded, so that nothing the child does can hide a peak.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.engine import tiny_models

LIMIT = 1.15
# The embedding and the head of this file are half of its weights. They are unpacked to a byte for
# each code on their way into panels, both at once by two threads.
GGUF_LIMIT = 1.5
CHILD = """
import sys
from engine.process import set_thread_policy
set_thread_policy()
import torch
from engine.backends.cpu import CpuBackend
from engine.checkpoint import Checkpoint
from engine.load_report import weight_bytes
from engine.weights import load_decoder
path, quantization = sys.argv[1], None if sys.argv[2] == "none" else sys.argv[2]
torch.ones(512, 512, dtype=torch.bfloat16) @ torch.ones(512, 512, dtype=torch.bfloat16)
print("ready", flush=True)
sys.stdin.readline()
checkpoint = Checkpoint.open(path)
decoder = load_decoder(
    checkpoint, torch.bfloat16, torch.device("cpu"), CpuBackend(), quantization
)
print(weight_bytes(decoder), flush=True)
"""


def measure(path: Path, quantization: str) -> tuple[int, int]:
    """Bytes of the weights as served, and by how much loading raised the child's own memory."""
    command = [sys.executable, "-c", CHILD, str(path), quantization]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        before = peak = own_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        while True:
            now = own_bytes(child.pid)
            if now is None or before is None or peak is None:
                break
            peak = max(peak, now)
        served = int(child.stdout.readline())
    assert before is not None and peak is not None
    return served, peak - before


def own_bytes(pid: int) -> int | None:
    """RssAnon of a process; None once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None  # a process that has ended and was not waited for has no such line


SIZE, KV_SIZE, WIDTH, VOCAB_SIZE = 1280, 256, 3456, 32_000
LINEAR = {
    "self_attn.q_proj": (SIZE, SIZE),
    "self_attn.k_proj": (KV_SIZE, SIZE),
    "self_attn.v_proj": (KV_SIZE, SIZE),
    "self_attn.o_proj": (SIZE, SIZE),
    "mlp.gate_proj": (WIDTH, SIZE),
    "mlp.up_proj": (WIDTH, SIZE),
    "mlp.down_proj": (SIZE, WIDTH),
}
CONFIG = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": SIZE,
    "intermediate_size": WIDTH,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
QUANTIZATION = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}


def write_checkpoint(folder: Path, num_layers: int, *, packed: bool) -> Path:
    """A model of about 300 MB, in BF16 or by GPTQ with 4 bits and act-order."""
    tensors = {
        "model.embed_tokens.weight": floats(VOCAB_SIZE, SIZE),
        "model.norm.weight": floats(1, SIZE)[0],
    }
    for layer in range(num_layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = floats(1, SIZE)[0]
        for part, (rows, columns) in LINEAR.items():
            if packed:
                tensors |= packed_tensors(f"{name}.{part}", rows, columns)
            else:
                tensors[f"{name}.{part}.weight"] = floats(rows, columns)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config: dict[str, object] = CONFIG | {"num_hidden_layers": num_layers}
    if packed:
        config["quantization_config"] = QUANTIZATION
    (folder / "config.json").write_text(json.dumps(config))
    tiny_models.write_tokenizer(folder)
    return folder


def floats(rows: int, columns: int) -> torch.Tensor:
    """Random, but by rows that repeat: drawing them all would take longer than loading them."""
    return torch.randn(1, columns).bfloat16().expand(rows, columns).contiguous()


def packed_tensors(module: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Of one module: random codes, zero points stored less one, groups of 128 in random order."""
    generator = torch.Generator().manual_seed(columns)  # what has the same input has one order
    groups = torch.arange(columns, dtype=torch.int32) // 128
    return {
        f"{module}.qweight": torch.randint(2**31, (columns // 8, rows), dtype=torch.int32),
        f"{module}.qzeros": torch.full((columns // 128, rows // 8), 0x77777777, dtype=torch.int32),
        f"{module}.scales": torch.full((columns // 128, rows), 0.01, dtype=torch.float16),
        f"{module}.g_idx": groups[torch.randperm(columns, generator=generator)],
    }


def check(path: Path, quantization: str = "none", limit: float = LIMIT) -> None:
    """On a machine that is busy threads meet in unlucky ways now and then: three tries."""
    for _ in range(3):
        served, taken = measure(path, quantization)
        assert taken >= 0.95 * served, "the measurement must see the weights themselves"
        if taken <= limit * served:
            return
    pytest.fail(f"loading took {taken / served:.3f} times the weights")


@pytest.mark.real_model
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_gguf_file(qwen_coder_path: Path, quantization: str) -> None:
    check(qwen_coder_path, quantization, GGUF_LIMIT)


def test_safetensors(tmp_path: Path) -> None:
    check(write_checkpoint(tmp_path, 6, packed=False))


def test_gptq(tmp_path: Path) -> None:
    check(write_checkpoint(tmp_path, 24, packed=True))
