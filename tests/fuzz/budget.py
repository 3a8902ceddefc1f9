"""How long fuzzing takes: the same few examples in every run, or FUZZ_EXAMPLES=N new ones of each.

`FUZZ_EXAMPLES=20000 make test ARGS=tests/fuzz` takes minutes and finds other things every time.
"""

import os
import random
from collections.abc import Sequence

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def budget(examples: int) -> settings:
    """Settings for a test that takes about a second with so many."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with some of them changed, cut out, doubled, or moved. The same for a seed."""
    generator = random.Random(seed)
    content = bytearray(data)
    for _ in range(generator.randint(1, 5)):
        start = generator.randrange(len(content) + 1)
        end = min(start + round(generator.expovariate(0.2)), len(content))
        match generator.randrange(6):
            case 0:
                content[start:end] = generator.randbytes(end - start)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start:end] * generator.choice((1, 2, 50))
            case 3:
                content[start:end] = generator.choice(_INTERESTING)
            case 4:
                content[start : start + 8] = generator.choice(_NUMBERS).to_bytes(8, "little")
            case _:
                other = generator.randrange(len(content) + 1)
                content[start:start] = content[other : other + 20]
    return bytes(content)


_NUMBERS: Sequence[int] = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_INTERESTING: Sequence[bytes] = (
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"null", b"-1", b"1e999", b"NaN", b"[]"),
    *(b"{}", b'"', b"'", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"{{", b"{%", b"}}", b"\n"),
    *(b"\r\n\r\n", b"../../", b"<|im_end|>", b"true", b'""', b",", b":", b"\xe2\x80\xa8"),
    *(b"0" * 400, b"(a+)+$"),
)
