"""Changes pieces of a SentencePiece model file (a protobuf message) to control tokens.

Baichuan's role markers ("<reserved_106>") are ordinary pieces in its file, so a user's text could
become them. A control piece never comes out of a text. Format: sentencepiece_model.proto, where
ModelProto.pieces is field 1 and SentencePiece.type field 3 (CONTROL = 3).
"""

from collections.abc import Collection, Iterator

_PIECES_TAG = 1 << 3 | 2  # field 1, length-delimited
_CONTROL_TYPE = bytes([3 << 3, 3])  # field 3, varint: the last value of a field counts


def with_control_pieces(model: bytes, piece_ids: Collection[int]) -> bytes:
    """The same model with these pieces as control tokens.

    Raises:
        ValueError: not a protobuf message.
    """
    if not piece_ids:
        return model
    result = bytearray()
    piece_id = 0
    for tag, start, body, end in _fields(model):
        if tag != _PIECES_TAG:
            result += model[start:end]
            continue
        piece = model[body:end]
        if piece_id in piece_ids:
            piece += _CONTROL_TYPE
        result += bytes([tag]) + _varint(len(piece)) + piece
        piece_id += 1
    return bytes(result)


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, start, start of the value and end of each field of a message."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, end = _read_varint(data, at)
        elif kind == 2:
            length, at = _read_varint(data, at)
            end = at + length
        elif kind in (1, 5):
            end = at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"not a SentencePiece model: field kind {kind}")
        if end > len(data):
            raise ValueError("not a SentencePiece model: it ends inside a field")
        yield tag, start, at, end
        at = end


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("not a SentencePiece model: a number has no end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
