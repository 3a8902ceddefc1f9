"""The GGUF reader on files written by gguf-py, and on files damaged in every way."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import CheckpointError
from engine.gguf import GgufFile

MATRIX = np.arange(64, dtype=np.float32).reshape(2, 32)


def write_file(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_int64("a.i64", -3)
    writer.add_string("a.text", "Ġhé")
    writer.add_array("a.texts", ["x", "", "Ċ世界"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("matrix", MATRIX)
    writer.add_tensor("vector", np.ones(5, dtype=np.float16))
    blocks = gguf.quants.quantize(MATRIX, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantised", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_file(tmp_path_factory.mktemp("gguf") / "good.gguf").read_bytes()


def open_bytes(tmp_path: Path, data: bytes) -> GgufFile:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return GgufFile.open(path)


def test_metadata_and_tensors(tmp_path: Path, good: bytes) -> None:
    file = open_bytes(tmp_path, good)
    expected = {
        "general.architecture": "llama",
        "a.u32": 7,
        "a.f32": 0.5,
        "a.bool": True,
        "a.i64": -3,
        "a.text": "Ġhé",
        "a.texts": ["x", "", "Ċ世界"],
        "a.numbers": [1, -2, 3],
    }
    assert file.version == 3
    assert file.metadata == expected
    assert {name: t.shape for name, t in file.tensors.items()} == {
        "matrix": (2, 32),
        "vector": (5,),
        "quantised": (2, 32),
    }
    matrix = file.tensors["matrix"]
    np.testing.assert_array_equal(matrix.data.view(np.float32), MATRIX.ravel())
    assert (matrix.type_name, matrix.block_elements, matrix.block_bytes) == ("F32", 1, 4)
    assert file.tensors["quantised"].type_name == "Q8_0"
    assert file.tensors["quantised"].data.shape == (2 * 34,)


@pytest.mark.real_model
def test_real_file_equals_gguf_py(smollm2_path: Path) -> None:
    file = GgufFile.open(smollm2_path)
    reader = gguf.GGUFReader(smollm2_path)
    assert set(file.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert ours.type_name == tensor.tensor_type.name
        np.testing.assert_array_equal(ours.data, tensor.data.reshape(-1).view(np.uint8))
    for key in ("tokenizer.ggml.merges", "tokenizer.chat_template", "llama.rope.freq_base"):
        field = reader.get_field(key)
        assert field is not None
        assert file.metadata[key] == field.contents()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04" + bytes(100), "does not begin with the letters GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "claims to have 1099511627776 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "claims to have 1099511627776 metadata keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "claims to be 1152921504606846976 bytes"),
    ],
)
def test_bad_headers(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        open_bytes(tmp_path, data)


def with_u32(good: bytes, after: bytes, offset: int, value: int) -> bytes:
    """`good` with the 32-bit integer at `offset` behind the first `after` replaced."""
    at = good.index(after) + len(after) + offset
    return good[:at] + struct.pack("<I", value) + good[at + 4 :]


@pytest.mark.parametrize(
    ("after", "offset", "value", "problem"),
    [
        (b"a.u32", 0, 99, "unknown type 99"),
        (b"a.texts", 4, 9, "unsupported type 9"),
        (b"a.texts", 8, 2**31, "claims to have 2147483648 items"),
        (b"a.numbers", 8, 2**22, "ends in the middle"),
        (b"matrix", 0, 9, "claims 9 dimensions"),
        (b"matrix", 4, 0, "impossible shape"),
        (b"matrix", 20, 77, "unknown type 77"),
        (b"matrix", 20, 12, "not a multiple of the 256 in a block of Q4_K"),
        (b"matrix", 24, 3, "multiple of 32 bytes"),
        (b"matrix", 24, 2**20, "beyond the end of the file"),
    ],
)
def test_bad_fields(
    tmp_path: Path, good: bytes, after: bytes, offset: int, value: int, problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        open_bytes(tmp_path, with_u32(good, after, offset, value))


def test_names_twice(tmp_path: Path, good: bytes) -> None:
    with pytest.raises(CheckpointError, match="appears twice"):
        open_bytes(tmp_path, good.replace(b"a.u32", b"a.i64"))
    with pytest.raises(CheckpointError, match="appears twice"):
        open_bytes(tmp_path, good.replace(b"vector", b"matrix"))


def test_truncated_anywhere(tmp_path: Path, good: bytes) -> None:
    for length in range(len(good) - 64):  # the last tensor's padding may go
        with pytest.raises(CheckpointError):
            open_bytes(tmp_path, good[:length])


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2**16),
)
def test_damage_gives_a_checkpoint_error_or_a_file(
    tmp_path: Path, good: bytes, damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(good)
    for position, byte in damage:
        data[position % len(data)] = byte
    if cut % 3 == 0:
        del data[cut % len(data) :]
    try:
        file = open_bytes(tmp_path, bytes(data))
    except CheckpointError as exc:
        assert str(exc).endswith(".")
    else:
        assert sum(t.data.nbytes for t in file.tensors.values()) <= 3 * len(data)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        GgufFile.open(tmp_path / "absent.gguf")
