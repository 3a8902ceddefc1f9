"""How many pieces a SentencePiece model file has, without the library.

Format: sentencepiece_model.proto, where ModelProto.pieces is field 1, once for each piece.
"""

_PIECES_TAG = 1 << 3 | 2  # field 1, length-delimited


def count_pieces(model: bytes) -> int:
    """Raises ValueError for what is not such a file."""
    count = at = 0
    while at < len(model):
        tag, at = _varint(model, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(model, at)
        elif kind == 2:
            length, at = _varint(model, at)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"not a SentencePiece model: field kind {kind}")
        count += tag == _PIECES_TAG
    if at != len(model) or not count:
        raise ValueError("not a SentencePiece model: it has no pieces or ends too early")
    return count


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
