"""Sampling noise as a pure function of seed and position: Philox4x32-10. No state, no torch.

The same (seed, position) gives the same number on every machine, in every batch and after every
preemption or resume. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011
(the Random123 library).
"""

import numpy as np
import numpy.typing as npt

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # golden ratio, sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(
    counter: npt.NDArray[np.uint64], key: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return the words (4, n) that Philox4x32-10 makes of `counter` (4, n) and `key` (2, n).

    Words of 32 bits are held in uint64, so that a product of two of them does not overflow.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(seeds: list[int], positions: list[int]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1), of 53 random bits, for each seed and position, both < 2**64."""
    seed_words = np.array(seeds, dtype=np.uint64)
    position_words = np.array(positions, dtype=np.uint64)
    zeros = np.zeros_like(position_words)
    words = philox4x32(
        np.stack([position_words & _LOW, position_words >> _HALF, zeros, zeros]),
        np.stack([seed_words & _LOW, seed_words >> _HALF]),
    )
    bits = (words[0] << np.uint64(21)) ^ (words[1] >> np.uint64(11))  # 32 + 21 = 53 bits
    result: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return result
