"""Which tensor of a checkpoint fills which rows of which parameter, checked name by name.

Between the family's rules (engine/models/family.py) and the readers (engine/weights.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.models import registry
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.models.family import Part, TensorRule

# In many files, and not weights: RoPE frequencies, which are computed or part of the config here.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rope_freqs.weight")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one source tensor goes."""

    source: str
    target: torch.Tensor  # a view of the parameter: the rows that the source fills, in its shape
    row_order: torch.Tensor | None  # the source's row for each row of `target`; None = the same


def place_tensors(
    decoder: Decoder, checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]
) -> list[Placement]:
    """Where each of the checkpoint's tensors, given by name and shape, goes in `decoder`.

    Raises CheckpointError naming a tensor that is missing, unexpected or of the wrong shape.
    """
    family = registry.family(checkpoint.config["model_type"])
    is_gguf = checkpoint.format == "gguf"
    rules = family.gguf_rules if is_gguf else family.hub_rules
    pairs_neighbours = family.gguf_pairs_neighbours if is_gguf else family.hub_pairs_neighbours
    placements = list(_placements(decoder, rules, pairs_neighbours))
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
    ignored = _IGNORED_SUFFIXES + family.ignored_suffixes
    for name in shapes:
        if name not in expected and not name.endswith(ignored):
            raise CheckpointError(f"{checkpoint.path} has the unexpected tensor {name!r}.")
    return placements


def _placements(
    decoder: Decoder, rules: tuple[TensorRule, ...], pairs_neighbours: bool
) -> Iterator[Placement]:
    parameters, config = decoder.parameters(), decoder.config
    for rule in rules:
        layers = range(config.num_layers) if "{layer}" in rule.source else range(1)
        has_experts = config.moe is not None and "{expert}" in rule.source
        experts = range(config.moe.num_experts) if config.moe and has_experts else range(1)
        for layer, expert in product(layers, experts):
            parameter = parameters.get(rule.target.format(layer=layer, expert=expert))
            if parameter is None:
                continue
            yield Placement(
                source=rule.source.format(layer=layer, expert=expert),
                target=parameter[_rows(parameter.shape[0], config, rule.part)],
                row_order=_row_order(config, rule) if pairs_neighbours else None,
            )


def _rows(num_rows: int, config: DecoderConfig, part: Part) -> slice:
    """The rows of a fused parameter of `num_rows` rows that a part fills."""
    q = config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    match part:
        case "q":
            return slice(0, q)
        case "k":
            return slice(q, q + kv)
        case "v":
            return slice(q + kv, q + 2 * kv)
        case "gate":
            return slice(0, num_rows // 2)
        case "up":
            return slice(num_rows // 2, num_rows)
        case "all":
            return slice(None)


def _row_order(config: DecoderConfig, rule: TensorRule) -> torch.Tensor | None:
    """The rows of a source that pairs neighbours, in the order that pairs halves."""
    if ".qkv." not in rule.target or rule.part == "v" or config.rope is None:
        return None
    num_heads = {
        "q": config.num_heads,
        "k": config.num_kv_heads,
        "all": config.num_heads + config.num_kv_heads,  # then come the rows of v
    }[rule.part]
    rotary_dim = config.rope.rotary_dim
    of_head = torch.arange(config.head_dim)
    of_head[:rotary_dim] = of_head[:rotary_dim].view(-1, 2).T.flatten()
    starts = torch.arange(num_heads) * config.head_dim
    order = (starts.unsqueeze(1) + of_head).flatten()
    num_values = config.num_kv_heads * config.head_dim if rule.part == "all" else 0
    return torch.cat((order, torch.arange(len(order), len(order) + num_values)))
