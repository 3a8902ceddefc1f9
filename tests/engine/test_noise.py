import numpy as np
import pytest

from engine.noise import philox4x32, uniforms

# counter, key, result: the philox4x32-10 lines of tests/kat_vectors in Random123 1.14.0
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    result = philox4x32(
        np.array(words(counter), dtype=np.uint64)[:, None],
        np.array(words(key), dtype=np.uint64)[:, None],
    )
    assert result[:, 0].tolist() == words(expected)


def test_philox_is_vectorised_over_columns() -> None:
    counters = np.array([words(row[0]) for row in KNOWN_ANSWERS], dtype=np.uint64).T
    keys = np.array([words(row[1]) for row in KNOWN_ANSWERS], dtype=np.uint64).T
    expected = np.array([words(row[2]) for row in KNOWN_ANSWERS], dtype=np.uint64).T
    assert np.array_equal(philox4x32(counters, keys), expected)


def test_seed_is_the_key_and_position_the_counter_low_word_first() -> None:
    # the top 53 bits of the first two words of the all-zero known answer
    assert uniforms([0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def test_all_bits_of_seed_and_position_count() -> None:
    seeds = [0] + [1 << bit for bit in range(64)]
    assert len(set(uniforms(seeds, [5] * 65).tolist())) == 65
    assert len(set(uniforms([5] * 65, seeds).tolist())) == 65


def test_range_and_moments() -> None:
    values = uniforms([7] * 100_000, list(range(100_000)))
    assert values.min() >= 0
    assert values.max() < 1
    # 5 standard deviations of the mean and of the variance of a uniform sample
    assert abs(values.mean() - 1 / 2) < 5 * (1 / 12 / 100_000) ** 0.5
    assert abs(values.var() - 1 / 12) < 5 * (1 / 180 / 100_000) ** 0.5
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / 100_000**0.5


def test_largest_seed_and_no_rows() -> None:
    assert 0 <= uniforms([2**64 - 1], [2**63])[0] < 1
    assert uniforms([], []).shape == (0,)
