"""The packed tensors of GPTQ and AWQ checkpoints, as weights of the modules they belong to.

Layouts: AutoGPTQ's qlinear modules and AutoAWQ's WQLinear_GEMM. K = in_features, N = out_features,
G = groups; int32 words hold 32 / bits codes, the first in the lowest bits.
"""

from dataclasses import dataclass
from functools import partial

import torch

from engine.errors import CheckpointError
from engine.quant.config import QuantizationConfig
from engine.quant.groupwise import GroupwiseWeight, pack_nibbles, unpack_nibbles
from engine.weight_source import Job, Rows, TensorFiles, copy_part

# Nibble i of an AWQ word is column _AWQ_ORDER[i] of its eight; this is the inverse.
_AWQ_NIBBLE_OF_COLUMN = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
_PARTS = ("qweight", "qzeros", "scales")
_REORDERED_ROWS = 256  # at once, to bound the memory that it takes


@dataclass(frozen=True, slots=True)
class PackedSource:
    """`files` with the four tensors of each quantized module seen as one weight of shape (N, K)."""

    files: TensorFiles
    config: QuantizationConfig
    shapes: dict[str, tuple[int, ...]]
    packed: frozenset[str]  # names of weights that are stored packed

    @classmethod
    def over(cls, files: TensorFiles, config: QuantizationConfig) -> "PackedSource":
        """Raises CheckpointError on a module whose tensors do not fit together."""
        shapes = dict(files.shapes)
        modules = [name.removesuffix(".qweight") for name in shapes if name.endswith(".qweight")]
        if not modules:
            raise CheckpointError(f"The {config.method} checkpoint has no tensor named *.qweight.")
        for module in modules:
            for part in _PARTS:
                if f"{module}.{part}" not in shapes:
                    raise CheckpointError(f"The checkpoint lacks the tensor '{module}.{part}'.")
            shape = _checked_shape(module, config, shapes)
            for part in (*_PARTS, "g_idx"):
                shapes.pop(f"{module}.{part}", None)
            shapes[f"{module}.weight"] = shape
        return cls(files, config, shapes, frozenset(f"{module}.weight" for module in modules))

    def fill_jobs(
        self, name: str, target: torch.Tensor, rows: Rows = None, columns: slice | None = None
    ) -> list[Job]:
        return [partial(copy_part, self._read, name, target, rows, columns)]

    def _read(self, name: str) -> torch.Tensor:
        return self.read_packed(name).dequantize() if name in self.packed else self.files.read(name)

    def read_packed(self, name: str) -> GroupwiseWeight:
        """A weight that `packed` names."""
        module = name.removesuffix(".weight")
        if self.config.method == "awq":
            return self._read_awq(module)
        return self._read_gptq(module)

    def is_ignorable(self, name: str) -> bool:
        """GPTQ's tools write a bias of zeros for every module, also where the model has none."""
        module, _, part = name.rpartition(".")
        if part != "bias" or f"{module}.weight" not in self.packed:
            return False
        return not self.files.read(name).any()

    def _read_gptq(self, module: str) -> GroupwiseWeight:
        bits, per_byte = self.config.bits, 8 // self.config.bits
        rows, columns = self.shapes[f"{module}.weight"]
        words = self.files.read(f"{module}.qweight")  # (K * bits / 32, N)
        # The bytes of a word hold consecutive k of one n.
        codes = words.view(torch.uint8).view(-1, rows, 4).permute(1, 0, 2)
        codes = codes.reshape(rows, columns // per_byte)
        zeros = _unpack_columns(self.files.read(f"{module}.qzeros"), bits)  # (G, N)
        if self.config.zeros_are_less_one:
            zeros = (zeros + 1) & (2**bits - 1)
        if self.config.is_symmetric and bool((zeros != 2 ** (bits - 1)).any()):
            raise CheckpointError(
                f"Tensor '{module}.qzeros' is not symmetric as the config says. Most likely its "
                "checkpoint_format is wrong: 'gptq' stores zero points less one, 'gptq_v2' as "
                "they are."
            )
        scales = self.files.read(f"{module}.scales")
        group_size = self.config.group_size or columns
        order = self._order(module, columns, group_size)
        if order is not None:
            # A piece at a time: a code in a byte of its own takes twice the memory.
            for piece in torch.split(codes, _REORDERED_ROWS):
                piece.copy_(_take_columns(piece, order, bits))
        return GroupwiseWeight(
            codes, scales.T.contiguous(), zeros.T.contiguous(), bits, group_size, order
        )

    def _order(self, module: str, columns: int, group_size: int) -> torch.Tensor | None:
        """The columns sorted by group, from g_idx; None where they are in order already."""
        name = f"{module}.g_idx"
        if name not in self.files.shapes:
            return None
        groups = self.files.read(name).long()
        plain = torch.arange(columns) // group_size
        if torch.equal(groups, plain):
            return None
        order = groups.argsort(stable=True)
        if not torch.equal(groups[order], plain):
            raise CheckpointError(
                f"Tensor {name!r} does not put {group_size} columns into each group."
            )
        return order

    def _read_awq(self, module: str) -> GroupwiseWeight:
        columns = self.shapes[f"{module}.weight"][1]
        codes = _unpack_awq(self.files.read(f"{module}.qweight"))  # (K, N)
        zeros = _unpack_awq(self.files.read(f"{module}.qzeros"))  # (G, N)
        scales = self.files.read(f"{module}.scales")
        return GroupwiseWeight(
            pack_nibbles(codes.T.contiguous()),
            scales.T.contiguous(),
            zeros.T.contiguous(),
            bits=4,
            group_size=self.config.group_size or columns,
        )


def _checked_shape(
    module: str, config: QuantizationConfig, shapes: dict[str, tuple[int, ...]]
) -> tuple[int, int]:
    """(N, K) of a module, from its scales (G, N) and qweight."""
    per_word = 32 // config.bits
    qweight, scales = shapes[f"{module}.qweight"], shapes[f"{module}.scales"]
    if len(qweight) != 2 or len(scales) != 2:
        raise CheckpointError(f"The tensors of {module!r} do not have two dimensions.")
    if config.method == "awq":
        columns, rows = qweight[0], qweight[1] * per_word
    else:
        columns, rows = qweight[0] * per_word, qweight[1]
    group_size = config.group_size or columns
    expected = {
        "scales": (columns // group_size, rows),
        "qzeros": (columns // group_size, rows // per_word),
    }
    if columns % group_size or rows % per_word:
        raise CheckpointError(
            f"{module!r} has {columns} columns and {rows} rows, which groups of {group_size} and "
            f"words of {per_word} do not divide."
        )
    for part, shape in expected.items():
        if shapes[f"{module}.{part}"] != shape:
            raise CheckpointError(
                f"Tensor '{module}.{part}' has the shape {shapes[f'{module}.{part}']}, but "
                f"{config.method} with {config.bits} bits and groups of {group_size} means {shape}."
            )
    g_idx = shapes.get(f"{module}.g_idx")
    if g_idx is not None and g_idx != (columns,):
        raise CheckpointError(f"Tensor '{module}.g_idx' has the shape {g_idx}.")
    return rows, columns


def _take_columns(codes: torch.Tensor, order: torch.Tensor, bits: int) -> torch.Tensor:
    """Columns of packed codes in an order, packed again."""
    if bits == 8:
        return codes[:, order]
    return pack_nibbles(unpack_nibbles(codes)[:, order])


def _unpack_columns(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, n) int32 -> (rows, n * 32 / bits) uint8, the lowest bits first."""
    codes = words.contiguous().view(torch.uint8)
    return codes if bits == 8 else unpack_nibbles(codes)


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """(rows, n) int32 -> (rows, 8 * n) uint8, columns as AutoAWQ numbers them."""
    nibbles = _unpack_columns(words, 4).view(words.shape[0], -1, 8)
    return nibbles[..., _AWQ_NIBBLE_OF_COLUMN].flatten(1)
