"""A strict reader of GGUF files: metadata, and tensors as views of the mapped file. No torch.

Owns the container format only (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions
2 and 3); what the keys mean is engine/gguf_config.py, what a tensor's bytes mean is
engine/quant/gguf.py. Nothing in a file is believed: every count, length and offset is checked, and
anything wrong is a CheckpointError.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import CheckpointError

# id -> name, elements of a block, bytes of a block (ggml.h)
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
# metadata value id -> struct code, which is also a numpy dtype code
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
_U64 = struct.Struct("<Q")

_MAX_METADATA_BYTES = 256 * 2**20  # header, metadata and tensor list; real files stay under 20 MiB
_MAX_ARRAY_ITEMS = 4 * 2**20  # the largest vocabularies have about 300 thousand tokens
_MAX_KEYS = 2**16
_MAX_TENSORS = 2**20
_MAX_NAME_BYTES = 2**16
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**50

MetadataValue = bool | int | float | str | list[Any]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor, still in its file."""

    name: str
    shape: tuple[int, ...]  # torch order: rows first
    type_name: str  # "F32", "Q4_K", ...
    block_elements: int
    block_bytes: int
    data: npt.NDArray[np.uint8]  # (num_bytes,) view of the mapped file


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed GGUF file. The mapping lives as long as any tensor's `data` does."""

    path: Path
    version: int
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GgufTensor]

    @classmethod
    def open(cls, path: str | Path) -> "GgufFile":
        """Map and parse a file. Raises CheckpointError with one sentence saying what is wrong."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                # Private: its pages are never written, but torch warns about read-only arrays.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError as exc:  # an empty file cannot be mapped
            raise CheckpointError(f"{path} is an empty file.") from exc
        except OSError as exc:
            raise CheckpointError(f"{path} cannot be read: {exc.strerror}.") from exc
        parser = _Parser(path, data)
        version = parser.header()
        num_tensors = parser.count("tensors", _MAX_TENSORS)
        num_keys = parser.count("metadata keys", _MAX_KEYS)
        metadata = parser.metadata(num_keys)
        return cls(path, version, metadata, parser.tensors(num_tensors, metadata))


class _Parser:
    """A cursor over the mapped file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._end = min(len(data), _MAX_METADATA_BYTES)
        self._offset = 0

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is not a valid GGUF file: {problem}.")

    def _past_end(self) -> CheckpointError:
        return self.fail("it ends in the middle of its header (truncated or corrupt)")

    def header(self) -> int:
        """Read magic and version; the cursor is then at the tensor count. Returns the version."""
        if self._data[:4] != b"GGUF":
            raise self.fail("it does not begin with the letters GGUF")
        self._offset = 4
        version = int(self._scalar(4))
        if version in (2, 3):
            return version
        if version and version & 0xFFFF == 0:
            raise self.fail("it is big-endian, and only little-endian files are supported")
        raise self.fail(f"its version is {version}, and only 2 and 3 are supported")

    def count(self, what: str, limit: int) -> int:
        count = int(self._scalar(10))
        if count > limit:
            raise self.fail(f"it claims to have {count} {what}")
        return count

    def metadata(self, num_keys: int) -> dict[str, MetadataValue]:
        values: dict[str, MetadataValue] = {}
        for _ in range(num_keys):
            key = self._string("a metadata key", _MAX_NAME_BYTES)
            if key in values:
                raise self.fail(f"metadata key {key!r} appears twice")
            values[key] = self._value(key, int(self._scalar(4)))
        return values

    def tensors(self, count: int, metadata: dict[str, MetadataValue]) -> dict[str, GgufTensor]:
        """Read the tensor list and attach each tensor's bytes."""
        infos: dict[str, tuple[list[int], int, int]] = {}
        for _ in range(count):
            name = self._string("a tensor name", _MAX_NAME_BYTES)
            if name in infos:
                raise self.fail(f"tensor {name!r} appears twice")
            num_dimensions = int(self._scalar(4))
            if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
                raise self.fail(f"tensor {name!r} claims {num_dimensions} dimensions")
            dimensions = [int(self._scalar(10)) for _ in range(num_dimensions)]
            infos[name] = (dimensions, int(self._scalar(4)), int(self._scalar(10)))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r}, which is not a power of two")
        data_start = -(-self._offset // alignment) * alignment
        whole = np.frombuffer(self._data, dtype=np.uint8)
        return {
            name: self._tensor(name, *info, alignment=alignment, payload=whole[data_start:])
            for name, info in infos.items()
        }

    def _tensor(
        self,
        name: str,
        dimensions: list[int],
        type_id: int,
        offset: int,
        *,
        alignment: int,
        payload: npt.NDArray[np.uint8],
    ) -> GgufTensor:
        if type_id not in GGML_TYPES:
            raise self.fail(f"tensor {name!r} has the unknown type {type_id}")
        type_name, block_elements, block_bytes = GGML_TYPES[type_id]
        if min(dimensions) < 1 or prod(dimensions) > _MAX_ELEMENTS:
            raise self.fail(f"tensor {name!r} has the impossible shape {dimensions[::-1]}")
        if dimensions[0] % block_elements:
            raise self.fail(
                f"rows of tensor {name!r} have {dimensions[0]} elements, not a multiple of the "
                f"{block_elements} in a block of {type_name}"
            )
        num_bytes = prod(dimensions) // block_elements * block_bytes
        if offset % alignment:
            raise self.fail(f"tensor {name!r} does not begin at a multiple of {alignment} bytes")
        if offset + num_bytes > len(payload):
            raise self.fail(
                f"tensor {name!r} lies beyond the end of the file (truncated download?)"
            )
        return GgufTensor(
            name=name,
            shape=tuple(reversed(dimensions)),
            type_name=type_name,
            block_elements=block_elements,
            block_bytes=block_bytes,
            data=payload[offset : offset + num_bytes],
        )

    def _value(self, key: str, kind: int) -> MetadataValue:
        if kind in _SCALARS:
            return self._scalar(kind)
        if kind == _STRING:
            return self._string(f"the value of {key!r}", self._end)
        if kind == _ARRAY:
            return self._array(key)
        raise self.fail(f"metadata key {key!r} has the unknown type {kind}")

    def _scalar(self, kind: int) -> bool | int | float:
        reader = _STRUCTS[kind]
        if self._offset + reader.size > self._end:
            raise self._past_end()
        (value,) = reader.unpack_from(self._data, self._offset)
        self._offset += reader.size
        scalar: bool | int | float = value
        return scalar

    def _string(self, what: str, limit: int) -> str:
        length = int(self._scalar(10))
        start, end = self._offset, self._offset + length
        if length > limit or end > self._end:
            raise self.fail(f"{what} claims to be {length} bytes long")
        self._offset = end
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError as exc:
            raise self.fail(f"{what} is not UTF-8") from exc

    def _array(self, key: str) -> list[Any]:
        kind, length = int(self._scalar(4)), int(self._scalar(10))
        if length > _MAX_ARRAY_ITEMS:
            raise self.fail(f"the array {key!r} claims to have {length} items")
        if kind == _STRING:
            return self._string_array(key, length)
        if kind not in _SCALARS:
            raise self.fail(f"the array {key!r} holds items of the unsupported type {kind}")
        num_bytes = length * _STRUCTS[kind].size
        if self._offset + num_bytes > self._end:
            raise self._past_end()
        code = np.dtype(_SCALARS[kind]).newbyteorder("<")
        items = np.frombuffer(self._data, dtype=code, count=length, offset=self._offset)
        self._offset += num_bytes
        values: list[Any] = items.tolist()
        return values

    def _string_array(self, key: str, length: int) -> list[str]:
        """The hot loop: vocabularies and merges are hundreds of thousands of strings."""
        data, offset, end = self._data, self._offset, self._end
        unpack = _U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(length):
                start = offset + 8
                offset = start + unpack(data, offset)[0]
                if offset > end:
                    raise self.fail(f"a string of the array {key!r} passes the end of the header")
                strings.append(data[start:offset].decode())
        except struct.error as exc:
            raise self._past_end() from exc
        except UnicodeDecodeError as exc:
            raise self.fail(f"a string of the array {key!r} is not UTF-8") from exc
        self._offset = offset
        return strings
