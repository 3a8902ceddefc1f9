"""The exact bytes of a vocabulary's tokens, from the spellings that vocabularies use for them.

Byte-level vocabularies write each byte as one printable character (GPT-2's table); SentencePiece
ones write a space as U+2581 and single bytes as <0xNN>. The tokenizers build their
tables with it.
"""

import re
from functools import cache

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPM_SPACE = "▁"


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte of the byte-level spelling (openai/gpt-2, src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


def byte_level_bytes(spelling: str) -> bytes:
    """Bytes of a byte-level token; one with a character outside the alphabet is plain text."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in spelling])
    except KeyError:
        return spelling.encode()


def sentencepiece_bytes(spelling: str) -> bytes:
    """Bytes of a SentencePiece token."""
    match = _BYTE_TOKEN.fullmatch(spelling)
    if match:
        return bytes([int(match[1], 16)])
    return spelling.replace(_SPM_SPACE, " ").encode()
