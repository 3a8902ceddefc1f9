"""Which part of each tensor of a checkpoint a rank of a tensor-parallel group holds.

qkv is cut by whole heads and gate_up by columns of what they feed, both along their rows; output
and down along their columns; the embedding and the output head by rows of the vocabulary. All else
is on every rank. The decoder that these parts fill is engine/models/rank.py.
"""

from dataclasses import replace

import torch

from engine.errors import ConfigError
from engine.models.config import DecoderConfig
from engine.models.rank import VOCABULARY_UNIT, kv_head_range
from engine.parallel import TensorParallel
from engine.placement import Placement
from engine.quant.groupwise import GroupwiseWeight

_CUT_BY_ROWS = ("embedding", "head", "qkv", "gate_up")
_CUT_BY_COLUMNS = ("output", "down")


def shard_placements(
    placements: list[Placement],
    shapes: dict[str, torch.Size],
    config: DecoderConfig,
    parallel: TensorParallel,
    unit: int,
) -> list[Placement]:
    """What fills one rank's parameters, out of what fills the whole model's.

    `shapes` are those of the whole model's parameters. A bias that comes after the sum over the
    ranks is kept by rank 0 only.
    """
    if parallel.size == 1:
        return placements
    sharded = []
    for placement in placements:
        module, _, kind = placement.parameter.rpartition(".")
        part = module.rpartition(".")[2]
        if part in _CUT_BY_ROWS:
            rows = _rows(part, shapes[placement.parameter][0], config, parallel, unit)
            cut = _cut_rows(placement, rows)
            if cut is not None:
                sharded.append(cut)
        elif part in _CUT_BY_COLUMNS and kind == "weight":
            total = shapes[placement.parameter][1]
            columns = parallel.share(total, column_unit(module, config, unit))
            sharded.append(replace(placement, columns=slice(columns.start, columns.stop)))
        elif part not in _CUT_BY_COLUMNS or parallel.rank == 0:
            sharded.append(placement)
    return sharded


def shard_columns(
    weight: GroupwiseWeight, columns: slice, parallel: TensorParallel
) -> tuple[GroupwiseWeight, bool]:
    """One rank's columns of a packed weight, and whether it then multiplies the whole input.

    Where groups of columns do not lie within the ranks' shares (act-order spreads them over all
    inputs) each rank takes whole groups instead, and the inputs of all ranks are gathered first.
    """
    num_columns, group_size = weight.shape[1], weight.group_size
    if weight.order is None and group_size == num_columns:
        return weight.take_columns(columns, columns.stop - columns.start), False
    is_aligned = columns.start % group_size == 0 and (
        columns.stop % group_size == 0 or columns.stop == num_columns
    )
    if weight.order is None and is_aligned:
        return weight.take_columns(columns, group_size), False
    num_groups = num_columns // group_size
    if num_groups < parallel.size:
        raise ConfigError(
            f"--tensor-parallel-size {parallel.size} is too much for packed weights with "
            f"{num_groups} groups of {group_size} columns."
        )
    groups = parallel.share(num_groups)
    taken = slice(groups.start * group_size, groups.stop * group_size)
    order = torch.arange(num_columns) if weight.order is None else weight.order
    part = replace(weight, order=None).take_columns(taken, group_size)
    return replace(part, order=order[taken]), True


def column_unit(parameter: str, config: DecoderConfig, unit: int) -> int:
    """Columns of a module that is cut by columns that are on one rank: heads are kept whole."""
    return config.head_dim if ".output" in parameter else unit


def _rows(
    part: str, total: int, config: DecoderConfig, parallel: TensorParallel, unit: int
) -> list[range]:
    """Ranges of a parameter's rows that a rank holds, in the order in which it holds them."""
    if part in ("embedding", "head"):
        return [parallel.share(total, VOCABULARY_UNIT)]
    if part == "gate_up":
        share = parallel.share(total // 2, unit)
        return [share, range(share.start + total // 2, share.stop + total // 2)]
    dim, query_heads = config.head_dim, parallel.share(config.num_heads)
    kv_heads = kv_head_range(config, parallel)
    first_k = config.num_heads
    starts = (first_k + kv_heads.start, first_k + config.num_kv_heads + kv_heads.start)
    heads = [query_heads, *(range(start, start + len(kv_heads)) for start in starts)]
    return [range(part.start * dim, part.stop * dim) for part in heads]


def _cut_rows(placement: Placement, ranges: list[range]) -> Placement | None:
    """The part of a placement that fills a rank's rows; None where it fills none of them."""
    first = placement.rows.start or 0
    stop = placement.rows.stop
    local_start = local_stop = 0
    taken: list[range] = []  # rows of the source
    position = 0
    for rows in ranges:
        low = max(rows.start, first)
        high = rows.stop if stop is None else min(rows.stop, stop)
        if low < high:
            if not taken:
                local_start = position + low - rows.start
            local_stop = position + high - rows.start
            taken.append(range(low - first, high - first))
        position += len(rows)
    if not taken:
        return None
    order = placement.row_order
    assert not isinstance(order, slice)  # only this function makes slices
    row_order: torch.Tensor | slice
    if order is None and len(taken) == 1:
        row_order = slice(taken[0].start, taken[0].stop)
    else:
        picked = torch.cat([torch.arange(rows.start, rows.stop) for rows in taken])
        row_order = picked if order is None else order[picked]
    return replace(placement, rows=slice(local_start, local_stop), row_order=row_order)
