"""The decoder of one rank of a tensor-parallel group: that of a model with fewer heads and narrower
feed-forward networks. No torch but in engine/parallel.py.
"""

from dataclasses import replace

from engine.errors import ConfigError
from engine.models.config import DecoderConfig
from engine.parallel import TensorParallel

VOCABULARY_UNIT = 64  # rows of the embedding and the output head that stay together


def shard_config(config: DecoderConfig, parallel: TensorParallel, unit: int) -> DecoderConfig:
    """The decoder of one rank. `unit` is the least number of columns to keep together.

    vocab_size stays that of the model. Raises ConfigError where the sizes cannot be divided.
    """
    size = parallel.size
    if size == 1:
        return config
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % size or (kv_heads % size and size % kv_heads):
        raise ConfigError(
            f"--tensor-parallel-size {size} does not divide the model's {heads} attention heads "
            f"and {kv_heads} KV heads evenly."
        )

    if -(-config.vocab_size // VOCABULARY_UNIT) < size:
        raise ConfigError(
            f"--tensor-parallel-size {size} is too much for a vocabulary of {config.vocab_size}."
        )

    def width(total: int) -> int:
        if total and -(-total // unit) < size:
            raise ConfigError(
                f"--tensor-parallel-size {size} is too much for feed-forward networks with "
                f"{total} columns in groups of {unit}."
            )
        return len(parallel.share(total, unit))

    moe = config.moe and replace(
        config.moe,
        intermediate_size=width(config.moe.intermediate_size),
        shared_intermediate_size=width(config.moe.shared_intermediate_size),
    )
    return replace(
        config,
        num_heads=heads // size,
        num_kv_heads=max(1, kv_heads // size),
        intermediate_size=width(config.intermediate_size),
        moe=moe,
    )


def kv_head_range(config: DecoderConfig, parallel: TensorParallel) -> range:
    """The KV heads of a rank: its share, or the one that its query heads read."""
    if config.num_kv_heads % parallel.size == 0:
        return parallel.share(config.num_kv_heads)
    head = parallel.rank * config.num_kv_heads // parallel.size
    return range(head, head + 1)
