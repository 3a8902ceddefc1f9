"""The engine's options. Torch-free and frozen; built once by server/settings.py."""

from typing import Literal

import msgspec

KVCacheDtype = Literal["auto", "int8"]
Speculation = Literal["auto", "ngram", "off"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options as given; engine/load.py resolves "auto" and None."""

    model: str  # a local path: a folder in the hub's layout or a .gguf file
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # plain weights are made smaller while they are loaded; "none" = served as they are
    quantization: Literal["none", "int8", "int4"] = "none"
    # None = the checkpoint's own context; "auto" = as much of it as the KV cache holds
    max_model_len: int | Literal["auto"] | None = None
    # replaces the checkpoint's own, in the hub's spelling; None = the checkpoint's own
    rope_scaling: dict[str, str | int | float | bool | None] | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = (
        None  # token budget of a step; None = 512 on CPU, 8192 on CUDA
    )
    kv_cache_memory_bytes: int | None = None  # None = sized from the memory that is free
    kv_cache_dtype: KVCacheDtype = "auto"  # "auto" = the type computed in
    block_size: int = 16
    enable_prefix_caching: bool = True
    tensor_parallel_size: int = 1  # processes, one for each GPU, that share the model
    # "auto" = ngram where results do not depend on what else is in a step
    speculation: Speculation = "auto"
    draft_model: str | None = None  # a local path as `model`; drafts come from it, not from n-grams
    num_speculative_tokens: int = 8  # drafts of a sequence in one step, at most
    num_threads: int | None = None  # torch intra-op threads; None = torch's default
