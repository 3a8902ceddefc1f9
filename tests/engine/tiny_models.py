"""Writes tiny random checkpoints as the hub has them, made by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB_SIZE = 96


CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
EXTRA_SIZES: dict[str, dict[str, int]] = {
    "qwen3": {"head_dim": 16},  # 4 heads of 16 are not the hidden size
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
    },
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
    },
}


def build(model_type: str, **options: Any) -> Any:
    """A random model of transformers in float32; `options` go to its config."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    config_class, model_class = CLASSES[model_type]
    config: Any = config_class(**sizes | EXTRA_SIZES.get(model_type, {}) | options)
    model: Any = model_class(config)
    for parameter in model.parameters():  # the default scale is too small to tell mistakes apart
        parameter.data.normal_(mean=0.0, std=0.3)
    return model.eval()


def write(model: Any, folder: Path, *, shard_size: str = "1GB") -> Path:
    """Save `model` in the hub's layout, with a tokenizer.json that holds one token."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json that holds one token."""
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of None takes the key away."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
