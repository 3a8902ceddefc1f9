"""Tiny random checkpoints of Qwen v1, Baichuan2 and ChatGLM, laid out as the official ones."""

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]


def write_qwen_v1(folder: Path, **options: Any) -> tuple[Weights, dict[str, Any]]:
    """As Qwen-7B-Chat; seq_length is small, so that NTK and LogN are live."""
    config: dict[str, Any] = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 144,
        "kv_channels": 12,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 256,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 32,
        "softmax_in_fp32": False,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": "float32",
        "use_cache": True,
        "use_cache_kernel": False,
        "use_cache_quantization": False,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 512,
    } | options
    size, width = config["hidden_size"], config["intermediate_size"] // 2
    vocab_size = config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab_size, size),
        "transformer.ln_f.weight": (size,),
        "lm_head.weight": (vocab_size, size),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"transformer.h.{i}"
        shapes |= {
            f"{layer}.ln_1.weight": (size,),
            f"{layer}.ln_2.weight": (size,),
            f"{layer}.attn.c_attn.weight": (3 * size, size),
            f"{layer}.attn.c_attn.bias": (3 * size,),
            f"{layer}.attn.c_proj.weight": (size, size),
            f"{layer}.mlp.w1.weight": (width, size),
            f"{layer}.mlp.w2.weight": (width, size),
            f"{layer}.mlp.c_proj.weight": (size, width),
        }
    generation_config = {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": 256,
        "max_new_tokens": 512,
        "max_window_size": 24000,
        "pad_token_id": 256,
        "repetition_penalty": 1.1,
        "top_k": 0,
        "top_p": 0.8,
    }
    ranks = (f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256))
    files = {"qwen.tiktoken": "\n".join(ranks).encode()}
    stray = {"transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(6)}
    return _write(folder, config, generation_config, _random(shapes), files, stray), config


def write_baichuan2(
    folder: Path, kind: str = "7b", **options: Any
) -> tuple[Weights, dict[str, Any]]:
    """As Baichuan2-7B-Chat, or with kind "13b" as its larger sister, whose heads are no power of 2.

    The vocabulary has the official size: it is what tells version 2 from version 1.
    """
    config: dict[str, Any] = {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 24,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "model_max_length": 256,
        "model_type": "baichuan",
        "num_attention_heads": 4 if kind == "7b" else 6,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "tokenizer_class": "BaichuanTokenizer",
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 125696,
        "z_loss_weight": 0,
    }
    config |= ({"max_position_embeddings": 256} if kind == "7b" else {}) | options
    size, width = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], size),
        "model.norm.weight": (size,),
        "lm_head.weight": (config["vocab_size"], size),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.W_pack.weight": (3 * size, size),
            f"{layer}.self_attn.o_proj.weight": (size, size),
            f"{layer}.mlp.gate_proj.weight": (width, size),
            f"{layer}.mlp.up_proj.weight": (width, size),
            f"{layer}.mlp.down_proj.weight": (size, width),
            f"{layer}.input_layernorm.weight": (size,),
            f"{layer}.post_attention_layernorm.weight": (size,),
        }
    generation_config = {
        "assistant_token_id": 196,
        "bos_token_id": 1,
        "do_sample": True,
        "eos_token_id": 2,
        "max_new_tokens": 2048,
        "pad_token_id": 0,
        "repetition_penalty": 1.05,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "user_token_id": 195,
    }
    # the markers of roles, 195 and 196, are among these
    files = {"tokenizer.model": _sentencepiece(num_reserved=200)}
    weights = _random(shapes)
    # Normalised rows make small logits; larger ones show mistakes better.
    weights["model.norm.weight"] *= 5
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)} if kind == "7b" else {}
    return _write(folder, config, generation_config, weights, files, stray), config


def write_chatglm(folder: Path, **options: Any) -> tuple[Weights, dict[str, Any]]:
    """As ChatGLM3-6B; ChatGLM2-6B differs in nothing that its weights show."""
    config: dict[str, Any] = {
        "_name_or_path": "THUDM/chatglm3-6b",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["ChatGLMModel"],
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "bias_dropout_fusion": True,
        "eos_token_id": 2,
        "ffn_hidden_size": 40,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 48,
        "kv_channels": 12,
        "layernorm_epsilon": 1e-05,
        "model_type": "chatglm",
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 3,
        "original_rope": True,
        "pad_token_id": 0,
        "padded_vocab_size": 480,
        "post_layer_norm": True,
        "quantization_bit": 0,
        "rmsnorm": True,
        "seq_length": 256,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
    } | options
    size, width, vocab_size = (
        config["hidden_size"],
        config["ffn_hidden_size"],
        config["padded_vocab_size"],
    )
    queries = config["num_attention_heads"] * config["kv_channels"]
    rows = queries + 2 * config["multi_query_group_num"] * config["kv_channels"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (vocab_size, size),
        "transformer.encoder.final_layernorm.weight": (size,),
        "transformer.output_layer.weight": (vocab_size, size),
    }
    for i in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (size,),
            f"{layer}.self_attention.query_key_value.weight": (rows, size),
            f"{layer}.self_attention.query_key_value.bias": (rows,),
            f"{layer}.self_attention.dense.weight": (size, queries),
            f"{layer}.post_attention_layernorm.weight": (size,),
            f"{layer}.mlp.dense_h_to_4h.weight": (2 * width, size),
            f"{layer}.mlp.dense_4h_to_h.weight": (size, width),
        }
    files = {"tokenizer.model": _sentencepiece()}
    stray = {"transformer.rotary_pos_emb.inv_freq": torch.ones(3)}
    return _write(folder, config, None, _random(shapes), files, stray), config


def _random(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Large enough that a mistake shows."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def _write(
    folder: Path,
    config: dict[str, Any],
    generation_config: dict[str, Any] | None,
    weights: Weights,
    files: dict[str, bytes],
    stray: Weights,
) -> Weights:
    """Two shards and an index, the config and the tokenizer. Returns `weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights | stray
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, of_shard in shards.items():
        save_file({name: tensors[name] for name in of_shard}, folder / shard)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: shard for shard, of_shard in shards.items() for name in of_shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return weights


@cache
def _sentencepiece(num_reserved: int = 0) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "你好 世界"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=300 + num_reserved,
        user_defined_symbols=[f"<reserved_{i}>" for i in range(num_reserved)],
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    return written.getvalue()
