"""Which tensor of a checkpoint fills which rows of which parameter, checked name by name.

Between the family's rules (engine/models/family.py) and the readers (engine/weights.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.models import registry
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.models.family import Part, TensorRule

# In some files, and not weights: RoPE frequencies, which are computed or part of the config here.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rope_freqs.weight")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one source tensor goes."""

    source: str
    target: torch.Tensor  # a view of the parameter: the rows that the source fills, in its shape
    permuted_heads: int | None  # heads whose rows the source has in interleaved order


def place_tensors(
    decoder: Decoder, checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]
) -> list[Placement]:
    """Where each of the checkpoint's tensors, given by name and shape, goes in `decoder`.

    Raises CheckpointError naming a tensor that is missing, unexpected or of the wrong shape.
    """
    family = registry.family(checkpoint.config["model_type"])
    is_gguf = checkpoint.format == "gguf"
    rules = family.gguf_rules if is_gguf else family.hub_rules
    is_permuted = is_gguf and family.gguf_permutes_qk
    placements = list(_placements(decoder, rules, is_permuted))
    for placement in placements:
        shape, wanted = shapes.get(placement.source), tuple(placement.target.shape)
        if shape is None:
            raise CheckpointError(f"{checkpoint.path} lacks the tensor {placement.source!r}.")
        if shape != wanted:
            raise CheckpointError(
                f"Tensor {placement.source!r} has the shape {shape}, but the config means {wanted}."
            )
    expected = {placement.source for placement in placements}
    if decoder.config.tie_word_embeddings:  # some files repeat the embedding under this name
        expected |= {rule.source for rule in rules if rule.target == "head.weight"}
    for name in shapes:
        if name not in expected and not name.endswith(_IGNORED_SUFFIXES):
            raise CheckpointError(f"{checkpoint.path} has the unexpected tensor {name!r}.")
    return placements


def _placements(
    decoder: Decoder, rules: tuple[TensorRule, ...], is_permuted: bool
) -> Iterator[Placement]:
    parameters, config = decoder.parameters(), decoder.config
    for rule in rules:
        layers = range(config.num_layers) if "{layer}" in rule.source else range(1)
        for layer in layers:
            parameter = parameters.get(rule.target.format(layer=layer))
            if parameter is None:
                continue
            yield Placement(
                source=rule.source.format(layer=layer),
                target=parameter[_rows(config, rule.part)],
                permuted_heads=_heads(config, rule.part) if is_permuted else None,
            )


def _rows(config: DecoderConfig, part: Part) -> slice:
    """The rows of a fused parameter that a part fills."""
    q = config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    width = config.intermediate_size
    match part:
        case "q":
            return slice(0, q)
        case "k":
            return slice(q, q + kv)
        case "v":
            return slice(q + kv, q + 2 * kv)
        case "gate":
            return slice(0, width)
        case "up":
            return slice(width, 2 * width)
        case "all":
            return slice(None)


def _heads(config: DecoderConfig, part: Part) -> int | None:
    return {"q": config.num_heads, "k": config.num_kv_heads}.get(part)
