"""Blocks, reference counts and prefix-cache hits, one invariant a test."""

import pytest

from engine.block_manager import BlockManager
from engine.errors import InvariantViolated
from engine.messages import EngineRequest, SamplingParams
from engine.sequence import Sequence


def sequence(tokens: list[int], salt: str = "", prompt_logprobs: int | None = None) -> Sequence:
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=prompt_logprobs)
    request = EngineRequest(id="x", prompt_token_ids=tokens, sampling=sampling, cache_salt=salt)
    return Sequence(request, arrival=0)


def compute(blocks: BlockManager, tokens: list[int], salt: str = "") -> Sequence:
    """A sequence that has been scheduled whole."""
    one = sequence(tokens, salt)
    assert blocks.allocate(one, len(tokens))
    blocks.publish(one, one.num_computed_tokens, len(tokens))
    return one


def test_allocates_whole_blocks_and_frees_them() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    one = compute(blocks, list(range(9)))
    assert len(one.block_table) == 3
    assert blocks.num_free_blocks == 1
    blocks.free(one)
    assert one.block_table == []
    blocks.check_idle()


def test_refuses_without_changing_anything() -> None:
    blocks = BlockManager(num_blocks=2, block_size=4)
    one = sequence(list(range(9)))
    assert not blocks.allocate(one, 9)
    assert one.block_table == []
    assert blocks.num_free_blocks == 2


def test_shares_full_blocks_of_an_equal_prefix() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    one = compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    two = compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    assert two.block_table[:2] == one.block_table[:2]
    assert two.num_computed_tokens == 8
    assert two.block_table[2] != one.block_table[2]
    assert blocks.num_free_blocks == 8 - 4


def test_always_leaves_a_token_to_compute() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    again = compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    assert again.num_computed_tokens == 4


def test_a_block_is_found_by_all_tokens_before_it_not_by_its_own() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    other = compute(blocks, [0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert other.num_computed_tokens == 0


def test_rotary_bases_do_not_share() -> None:
    blocks = BlockManager(8, 4)
    compute(blocks, [1, 2, 3, 4, 5])
    other = sequence([1, 2, 3, 4, 5])
    other.rope_theta = 30527.7
    assert blocks.allocate(other, 5)
    assert other.num_computed_tokens == 0


def test_salts_do_not_share() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, [1, 2, 3, 4, 5], salt="a")
    assert compute(blocks, [1, 2, 3, 4, 5], salt="b").num_computed_tokens == 0
    assert compute(blocks, [1, 2, 3, 4, 5], salt="a").num_computed_tokens == 4


def test_freed_blocks_hit_until_they_are_reused() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    blocks.free(compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    again = compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert again.num_computed_tokens == 8
    blocks.free(again)
    blocks.free(compute(blocks, [7] * 12))  # takes every block
    assert compute(blocks, [1, 2, 3, 4, 5]).num_computed_tokens == 0


def test_evicts_the_tail_of_a_prefix_before_its_head() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    blocks.free(compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
    other = compute(blocks, [9])
    blocks.free(other)
    assert compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9]).num_computed_tokens == 8


def test_hits_that_are_free_do_not_count_as_room() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    blocks.free(compute(blocks, [1, 2, 3, 4, 5, 6, 7, 8]))  # two cached blocks and one empty
    holder = compute(blocks, [9])
    assert blocks.num_free_blocks == 2
    assert not blocks.allocate(sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]), 9)
    blocks.free(holder)
    assert blocks.allocate(sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]), 9)


def test_retracted_blocks_do_not_hit() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    one = compute(blocks, [1, 2, 3, 4, 5])
    blocks.retract(one)
    assert compute(blocks, [1, 2, 3, 4, 5]).num_computed_tokens == 0


def test_prompt_logprobs_need_every_position() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, [1, 2, 3, 4, 5])
    one = sequence([1, 2, 3, 4, 5], prompt_logprobs=0)
    blocks.allocate(one, 5)
    assert one.num_computed_tokens == 0


def test_no_hits_when_switched_off() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4, enable_prefix_caching=False)
    compute(blocks, [1, 2, 3, 4, 5])
    assert compute(blocks, [1, 2, 3, 4, 5]).num_computed_tokens == 0


def test_a_leak_is_an_error() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, [1])
    with pytest.raises(InvariantViolated, match="1 KV blocks leaked"):
        blocks.check_idle()


def test_shrinking_frees_what_the_tokens_do_not_need() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    one = sequence([1, 2, 3, 4, 5])
    blocks.allocate(one, 14)
    table = list(one.block_table)
    blocks.shrink(one, 5)
    assert one.block_table == table[:2] and blocks.num_free_blocks == 6
    blocks.shrink(one, 8)
    assert one.block_table == table[:2]
    blocks.free(one)
    blocks.check_idle()
