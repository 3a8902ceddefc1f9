"""Options -> a loaded engine: resolves what they leave open and refuses what cannot work.

The one place where checkpoint, weights, KV cache, sampler and engine are put together.
"""

import logging
from functools import partial

import torch

from engine import kv_cache, load_report, weights
from engine.backends.cpu import CpuBackend
from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import Engine
from engine.errors import CheckpointError, ConfigError
from engine.followers import Followers
from engine.grammar_compiler import GrammarCompiler
from engine.kv_cache import KVCache
from engine.messages import EngineInfo
from engine.model_runner import ModelRunner
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.models.rank import shard_config
from engine.parallel import ALONE, TensorParallel
from engine.sampler import Sampler
from engine.speculation.ends import Ends
from engine.speculation.load import SpeculationLoader
from engine.token_bytes import read_token_bytes
from engine.vocabulary import num_valid_tokens

logger = logging.getLogger(__name__)


def load_engine(config: EngineConfig) -> Engine:
    """Load the model that `config` names and build the engine around it.

    Raises ConfigError and CheckpointError with a sentence fit to be shown to the user.
    """
    parallel = TensorParallel(0, config.tensor_parallel_size)
    device = resolve_device(config.device, parallel)
    set_num_threads(config, device)
    with load_report.phase("read checkpoint"):
        checkpoint = Checkpoint.open(config.model)
        decoder_config = resolve_decoder_config(config, checkpoint)
    dtype = weights.resolve_dtype(config.dtype, checkpoint, device)
    quantization = None if config.quantization == "none" else config.quantization
    unit = weights.sharding_unit(checkpoint, quantization)
    own_config = shard_config(decoder_config, parallel, unit)
    longest = resolve_max_model_len(config, decoder_config)
    if config.kv_cache_memory_bytes is not None:  # refused before the weights take their time
        resolve_num_blocks(config, own_config, dtype, device, longest)
    token_budget = resolve_token_budget(config, device)
    speculation = SpeculationLoader(config, checkpoint, device)
    backend = CpuBackend() if device.type == "cpu" else ReferenceBackend()
    followers = Followers.start(config, device) if parallel.size > 1 else None
    with load_report.phase("load weights") as fields:
        decoder = weights.load_decoder(
            checkpoint, dtype, device, backend, quantization, parallel, decoder_config
        )
        speculation.load_weights(backend)
        weight_bytes = load_report.weight_bytes(decoder)
        fields |= {"read_bytes": load_report.file_bytes(checkpoint), "weight_bytes": weight_bytes}
    num_blocks = parallel.minimum(
        resolve_num_blocks(config, own_config, dtype, device, longest, speculation.block_bytes)
    )
    max_model_len = longest
    if config.max_model_len == "auto":
        max_model_len = min(longest, num_blocks * config.block_size)
    _warn_of_small_cache(num_blocks * config.block_size, max_model_len)
    kv_dtype = config.kv_cache_dtype
    block_bytes = kv_cache.bytes_per_block(own_config, config.block_size, dtype, kv_dtype)
    with load_report.phase("allocate KV cache") as fields:
        cache = kv_cache.KVCache.allocate(
            own_config, num_blocks, config.block_size, dtype, device, kv_dtype
        )
        fields["kv_cache_bytes"] = num_blocks * block_bytes
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=decoder_config.vocab_size,
        num_blocks=num_blocks,
        block_size=config.block_size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        backend=backend.name,
    )
    num_valid = num_valid_tokens(checkpoint, decoder_config.vocab_size)
    _check_eos(checkpoint, decoder_config.vocab_size)
    sampler = Sampler(decoder_config.vocab_size, checkpoint.eos_token_ids, num_valid)
    forward_pass = backend.compile(decoder, cache)
    memory = {
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": block_bytes // config.block_size,
        "kv_bytes_per_sequence": -(-max_model_len // config.block_size) * block_bytes,
        "kv_cache_tokens": num_blocks * config.block_size,
    }
    model = load_report.describe_model(checkpoint, decoder_config, quantization)
    logger.info("model loaded", extra={"fields": {**model, **_as_fields(info), **memory}})
    return Engine(
        ModelRunner(forward_pass, cache, sampler, info, device, num_valid, followers),
        info,
        eos_token_ids=checkpoint.eos_token_ids,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=token_budget,
        enable_prefix_caching=config.enable_prefix_caching,
        grammars=GrammarCompiler(
            partial(read_token_bytes, checkpoint), num_valid, checkpoint.eos_token_ids
        ),
        speculator=speculation.speculator(
            backend,
            Ends(checkpoint.eos_token_ids, max_model_len),
            num_blocks,
            is_exact=forward_pass.batch_invariant,
        ),
    )


def load_follower(config: EngineConfig, parallel: TensorParallel) -> tuple[Decoder, KVCache]:
    """Load one of the other ranks; the collectives are those of `load_engine`, in its order."""
    device = resolve_device(config.device, parallel)
    set_num_threads(config, device)
    checkpoint = Checkpoint.open(config.model)
    decoder_config = resolve_decoder_config(config, checkpoint)
    dtype = weights.resolve_dtype(config.dtype, checkpoint, device)
    backend = CpuBackend() if device.type == "cpu" else ReferenceBackend()
    quantization = None if config.quantization == "none" else config.quantization
    decoder = weights.load_decoder(
        checkpoint, dtype, device, backend, quantization, parallel, decoder_config
    )
    longest = resolve_max_model_len(config, decoder.config)
    num_blocks = parallel.minimum(
        resolve_num_blocks(config, decoder.own_config, dtype, device, longest)
    )
    cache = KVCache.allocate(
        decoder.own_config, num_blocks, config.block_size, dtype, device, config.kv_cache_dtype
    )
    return decoder, cache


def set_num_threads(config: EngineConfig, device: torch.device) -> None:
    """Give each rank its part of the threads; on a GPU torch's own choice is as good."""
    num_ranks = config.tensor_parallel_size
    if config.num_threads is not None or (num_ranks > 1 and device.type == "cpu"):
        total = config.num_threads or torch.get_num_threads()
        torch.set_num_threads(max(1, total // num_ranks))


def resolve_device(name: str, parallel: TensorParallel = ALONE) -> torch.device:
    """The device that --device means for a rank; "auto" is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch finds no CUDA device.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and parallel.size > 1:
        if parallel.size > torch.cuda.device_count():
            raise ConfigError(
                f"--tensor-parallel-size {parallel.size} wants as many GPUs, and there are "
                f"{torch.cuda.device_count()}."
            )
        torch.cuda.set_device(parallel.rank)
        return torch.device("cuda", parallel.rank)
    return torch.device(name)


def resolve_decoder_config(config: EngineConfig, checkpoint: Checkpoint) -> DecoderConfig:
    """The decoder of the checkpoint, with the positions that the options ask for."""
    decoder_config = weights.decoder_config(checkpoint)
    if config.rope_scaling is None:
        return decoder_config
    return decoder_config.with_rope_scaling(config.rope_scaling)


def resolve_max_model_len(config: EngineConfig, decoder_config: DecoderConfig) -> int:
    """The context length that is served, at most the model's own; "auto" is not cut to memory."""
    own = decoder_config.max_position_embeddings
    if config.max_model_len is None or config.max_model_len == "auto":
        return own
    if not 1 <= config.max_model_len <= own:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is not within 1 to {own}, "
            "the model's context; --rope-scaling can stretch it."
        )
    return config.max_model_len


def resolve_token_budget(config: EngineConfig, device: torch.device) -> int:
    """Tokens of one step; every running sequence must be able to decode in it."""
    if config.max_num_seqs < 1:
        raise ConfigError(f"--max-num-seqs {config.max_num_seqs} is less than 1.")
    if config.max_num_batched_tokens is None:
        return max(8192 if device.type == "cuda" else 512, config.max_num_seqs)
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {config.max_num_batched_tokens} is less than "
            f"--max-num-seqs {config.max_num_seqs}: not every sequence could decode in a step."
        )
    return config.max_num_batched_tokens


def resolve_num_blocks(
    config: EngineConfig,
    decoder_config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    draft_block_bytes: int = 0,
) -> int:
    """Blocks of the KV cache: what the memory holds, at most what can ever be in use."""
    if config.block_size < 1:
        raise ConfigError(f"--block-size {config.block_size} is less than 1.")
    block_bytes = kv_cache.bytes_per_block(
        decoder_config, config.block_size, dtype, config.kv_cache_dtype
    )
    block_bytes += draft_block_bytes
    num_ranks = config.tensor_parallel_size
    if config.kv_cache_memory_bytes is not None:  # of all ranks together
        cache_bytes = config.kv_cache_memory_bytes // num_ranks
    else:
        cache_bytes = kv_cache.auto_kv_cache_bytes(device)
        if device.type == "cpu":  # whose memory the ranks share
            cache_bytes //= num_ranks
    num_blocks = cache_bytes // block_bytes
    blocks_per_sequence = -(-max_model_len // config.block_size)
    if num_blocks < 1:
        raise ConfigError(
            f"A KV cache of {cache_bytes} bytes does not hold one block of {config.block_size} "
            f"tokens, which takes {block_bytes} bytes; a sequence of {max_model_len} tokens takes "
            f"{blocks_per_sequence * block_bytes}. Give more with --kv-cache-memory."
        )
    return min(num_blocks, blocks_per_sequence * config.max_num_seqs)


def _warn_of_small_cache(num_tokens: int, max_model_len: int) -> None:
    if num_tokens < max_model_len:
        fields = {"kv_cache_tokens": num_tokens, "max_model_len": max_model_len}
        logger.warning(
            "the KV cache is smaller than the context: longer prompts are refused, longer "
            "sequences end early; give more with --kv-cache-memory",
            extra={"fields": fields},
        )


def _check_eos(checkpoint: Checkpoint, vocab_size: int) -> None:
    for token_id in checkpoint.eos_token_ids:
        if token_id >= vocab_size:
            raise CheckpointError(
                f"{checkpoint.path}: eos_token_id {token_id} is outside the vocabulary of "
                f"{vocab_size}."
            )


def _as_fields(info: EngineInfo) -> dict[str, object]:
    return {name: getattr(info, name) for name in info.__struct_fields__}
