"""The pieces of a SentencePiece model file, without the library.

Format: sentencepiece_model.proto, where ModelProto.pieces is field 1, once for each piece; of a
piece, field 1 is its text and field 3 its type (1, a normal one, where it is not given).
"""

from collections.abc import Iterator

_PIECES = _TEXT = 1
_TYPE = 3
_NORMAL = 1


def count_pieces(model: bytes) -> int:
    """Raises ValueError for what is not such a file."""
    count = sum(field == _PIECES for field, _ in _fields(model))
    if not count:
        raise ValueError("not a SentencePiece model: it has no pieces or ends too early")
    return count


def read_pieces(model: bytes) -> list[tuple[str, int]]:
    """Text and type of each piece. Raises ValueError for what is not such a file."""
    return [_piece(value) for field, value in _fields(model) if field == _PIECES]


def _piece(data: bytes | int) -> tuple[str, int]:
    text, kind = "", _NORMAL
    if isinstance(data, bytes):
        for field, value in _fields(data):
            if field == _TEXT and isinstance(value, bytes):
                text = value.decode()
            elif field == _TYPE and isinstance(value, int):
                kind = value
    return text, kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message; a fixed-size number as its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"not a SentencePiece model: field kind {kind}")
        if at + length > len(data):
            raise ValueError("not a SentencePiece model: it has no pieces or ends too early")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("not a SentencePiece model: a number has no end")
