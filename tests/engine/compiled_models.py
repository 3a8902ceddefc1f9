"""Tiny checkpoints of every dense family in the shapes that the compiled forward pass tells apart,
and decoders of them on any backend, each made once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.backends.cpu import CpuBackend
from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.models.decoder import Decoder
from engine.weights import load_decoder
from tests.engine import quantized_models, seed_models, tiny_models
from tests.engine.quantized_models import Format

Write = Callable[[Path], object]
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = {"use_sliding_window": True, "max_window_layers": 1}


def _tiny(model_type: str, **options: Any) -> Write:
    return lambda folder: tiny_models.write(tiny_models.build(model_type, **options), folder)


def _quantized(model_type: str, **options: Any) -> Write:
    return lambda folder: quantized_models.write(folder, Format(**options), model_type)


# Heads are of 8 elements unless said otherwise, and the vector units have 16 lanes.
KINDS: dict[str, Write] = {
    "llama": _tiny("llama"),
    "llama-yarn": _tiny("llama", rope_parameters=YARN | {"attention_factor": 1.3}),
    "llama-tied-biases": _tiny(
        "llama", attention_bias=True, head_dim=16, num_key_value_heads=1, tie_word_embeddings=True
    ),
    # nothing is a multiple of 16: 5 query heads share one of 40 elements; and epsilon is seen
    "llama-odd": _tiny(
        "llama",
        hidden_size=40,
        intermediate_size=50,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=40,
        rms_norm_eps=0.01,
    ),
    "llama-64-heads-share": _tiny(
        "llama", hidden_size=64, num_attention_heads=64, num_key_value_heads=1, head_dim=8
    ),
    "mistral": _tiny("mistral", sliding_window=24),
    "mistral-wide": _tiny("mistral", sliding_window=700, head_dim=96),
    "qwen2": _tiny("qwen2", sliding_window=130, **WINDOW),
    "qwen3": _tiny("qwen3"),
    "qwen3-128": _tiny("qwen3", head_dim=128),
    "qwen": lambda folder: seed_models.write_qwen_v1(folder, rotary_emb_base=1000),
    "baichuan-7b": lambda folder: seed_models.write_baichuan2(folder, "7b"),
    "baichuan-13b": lambda folder: seed_models.write_baichuan2(folder, "13b"),
    "chatglm": seed_models.write_chatglm,
    "gptq": _quantized("qwen2"),
    "gptq-act-order": _quantized("qwen2", symmetric=False, act_order=True),
    "gptq-8-bits": _quantized("llama", bits=8, group_size=-1),
    "awq": _quantized("qwen3", method="awq", group_size=16),
}


class Models:
    """Checkpoints below a folder, written when first asked for, and decoders made of them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._decoders: dict[tuple[str, str, torch.dtype], Decoder] = {}

    def folder(self, kind: str) -> Path:
        folder = self._root / kind
        if not folder.exists():
            KINDS[kind](folder)
        return folder

    def reference(self, kind: str, dtype: torch.dtype = torch.float32) -> Decoder:
        return self._decoder(kind, "", dtype)

    def compiled(self, kind: str, variant: str, dtype: torch.dtype = torch.float32) -> Decoder:
        """Made for the kernels of this variant; see CpuBackend.compile."""
        return self._decoder(kind, variant, dtype)

    def _decoder(self, kind: str, variant: str, dtype: torch.dtype) -> Decoder:
        key = (kind, variant, dtype)
        if key not in self._decoders:
            backend = CpuBackend(variant=variant) if variant else ReferenceBackend()
            checkpoint = Checkpoint.open(self.folder(kind))
            self._decoders[key] = load_decoder(checkpoint, dtype, torch.device("cpu"), backend)
        return self._decoders[key]


def token_ids(length: int, seed: int = 0) -> list[int]:
    """Ids that every vocabulary has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, tiny_models.VOCAB_SIZE, (length,), generator=generator).tolist()
