"""Writes tiny random checkpoints as the hub has them, made by transformers itself."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

VOCAB_SIZE = 96


def build(model_type: Literal["llama", "qwen2"], **options: Any) -> Any:
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
    if model_type == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | options))
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes | options))
    for parameter in model.parameters():  # the default scale is too small to tell mistakes apart
        parameter.data.normal_(mean=0.0, std=0.3)
    return model.eval()


def write(model: Any, folder: Path, *, shard_size: str = "1GB") -> Path:
    """Save `model` in the hub's layout, with a tokenizer.json that holds one token."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of None takes the key away."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
