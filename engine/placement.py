"""Which tensor of a checkpoint fills which rows of which parameter, checked name by name.

Between the family's rules (engine/models/family.py) and the loader (engine/weights.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.models import registry
from engine.models.config import DecoderConfig
from engine.models.decoder import Decoder
from engine.models.family import Part, TensorRule
from engine.weight_source import Rows

# In many files, and not weights: RoPE frequencies, which are computed or part of the config here.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rope_freqs.weight")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one source tensor goes."""

    source: str
    parameter: str  # of Decoder.parameters()
    rows: slice  # of the parameter that the source fills
    row_order: Rows  # the source's row for each of these rows; None = the same
    columns: slice | None = None  # of the source; None = all

    def rows_of_source(self, num_rows: int) -> slice | torch.Tensor:
        """Of a parameter of `num_rows` rows, the row that holds each row of the source."""
        if self.row_order is None or isinstance(self.row_order, slice):
            return self.rows
        return torch.arange(num_rows)[self.rows][self.row_order.argsort()]


def place_tensors(
    decoder: Decoder,
    checkpoint: Checkpoint,
    shapes: dict[str, tuple[int, ...]],
    is_ignorable: Callable[[str], bool],
) -> list[Placement]:
    """Where each of the checkpoint's tensors, given by name and shape, goes in `decoder`.

    Raises CheckpointError naming a tensor that is missing, of the wrong shape, or unexpected and
    not `is_ignorable`.
    """
    family = registry.family(checkpoint.config["model_type"])
    is_gguf = checkpoint.format == "gguf"
    rules = family.gguf_rules if is_gguf else family.hub_rules
    pairs_neighbours = family.gguf_pairs_neighbours if is_gguf else family.hub_pairs_neighbours
    placements = list(_placements(decoder, rules, pairs_neighbours))
    parameters = decoder.parameters()
    for placement in placements:
        shape = shapes.get(placement.source)
        wanted = tuple(parameters[placement.parameter][placement.rows].shape)
        if shape is None:
            raise CheckpointError(f"{checkpoint.path} lacks the tensor {placement.source!r}.")
        if shape != wanted:
            raise CheckpointError(
                f"Tensor {placement.source!r} has the shape {shape}, but the config means {wanted}."
            )
    for name in parameters.keys() - {placement.parameter for placement in placements}:
        raise CheckpointError(f"Files of this kind have no tensor for {name!r}.")
    expected = {placement.source for placement in placements}
    if decoder.config.tie_word_embeddings:  # some files repeat the embedding under this name
        expected |= {rule.source for rule in rules if rule.target == "head.weight"}
    ignored = _IGNORED_SUFFIXES + family.ignored_suffixes
    for name in shapes:
        if name not in expected and not name.endswith(ignored) and not is_ignorable(name):
            raise CheckpointError(f"{checkpoint.path} has the unexpected tensor {name!r}.")
    return placements


def hub_placements(decoder: Decoder, model_type: str) -> list[Placement]:
    """The same for the tensors that a folder of the hub has, whatever files there are."""
    family = registry.family(model_type)
    return list(_placements(decoder, family.hub_rules, family.hub_pairs_neighbours))


def _placements(
    decoder: Decoder, rules: tuple[TensorRule, ...], pairs_neighbours: bool
) -> Iterator[Placement]:
    parameters, config = decoder.parameters(), decoder.config
    num_experts = 1 if config.moe is None else config.moe.num_experts
    for rule in rules:
        layers = range(config.num_layers) if "{layer}" in rule.source else range(1)
        experts = range(num_experts) if "{expert}" in rule.source else range(1)
        for layer, expert in product(layers, experts):
            name = rule.target.format(layer=layer, expert=expert)
            if name in parameters:
                yield Placement(
                    source=rule.source.format(layer=layer, expert=expert),
                    parameter=name,
                    rows=_rows(parameters[name].shape[0], config, rule.part),
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
