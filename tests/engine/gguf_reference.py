"""transformers' model classes filled from a GGUF file without any of the engine's own mapping.

Dequantisation is gguf-py's; configs and names are written out here. (`from_pretrained(gguf_file=)`
gives the same weights, but insists on accelerate and takes a minute.)
"""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers

from engine.gguf import GgufFile

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@cache
def reference_model(path: Path) -> Any:
    """SmolLM2-135M-Instruct or Qwen2.5-Coder-0.5B-Instruct in float32, ready to be called."""
    is_llama = "SmolLM2" in path.name
    model = _smollm2() if is_llama else _qwen_coder()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in GgufFile.open(path).tensors.items():
        blocks = tensor.data.reshape(*tensor.shape[:-1], -1)
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        values = torch.from_numpy(gguf.quants.dequantize(blocks, kind)).clone()
        if is_llama and ".attn_q." in name:
            values = _rotate_half_order(values, 9)
        if is_llama and ".attn_k." in name:
            values = _rotate_half_order(values, 3)
        state[_hub_name(name)] = values
    if is_llama:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def _hub_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{suffix}"


def _rotate_half_order(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _smollm2() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    return transformers.LlamaForCausalLM(config)


def _qwen_coder() -> Any:
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        dtype=torch.float32,
    )
    return transformers.Qwen2ForCausalLM(config)
