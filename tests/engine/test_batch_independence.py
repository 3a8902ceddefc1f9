"""The compiled forward pass, bit for bit: a token's hidden state is the same whatever is computed
beside it, and what is not finite stays in its sequence.
"""

from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backends.cpu import CpuBackend
from engine.checkpoint import Checkpoint
from engine.kernels import library
from engine.kernels.forward import CompiledDecoder
from engine.kv_slots import Int8Slots
from engine.models.decoder import Decoder
from engine.sequence import Chunk, Sequence
from engine.weights import load_decoder
from tests.engine import tiny_models
from tests.engine.compiled_models import Models, token_ids
from tests.engine.forwarding import Forwarder, tile_positions

pytestmark = pytest.mark.usefixtures("one_thread")
VARIANTS = library.variants()
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# a model, its dtype and its cache's
CASES: dict[str, tuple[str, torch.dtype, Any]] = {
    "plain": ("llama", FLOAT32, "auto"),
    "odd sizes": ("llama-odd", BFLOAT16, "auto"),
    "window": ("qwen2", BFLOAT16, "auto"),
    "window, float32": ("mistral", FLOAT32, "int8"),
    "alibi": ("baichuan-13b", BFLOAT16, "int8"),
    "large heads": ("qwen3-128", BFLOAT16, "auto"),
    "angles by prompt": ("qwen", FLOAT32, "auto"),
    "4 bits": ("gptq", BFLOAT16, "auto"),
    "4 bits, float32": ("gptq-act-order", FLOAT32, "auto"),
    "4 bits, small groups": ("awq", BFLOAT16, "int8"),
    "8 bits": ("gptq-8-bits", BFLOAT16, "auto"),
}
LENGTH = 300  # three splits of keys


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


class Case:
    """One of CASES on one variant. Any prefix of a stream of tokens is a prompt."""

    def __init__(self, models: Models, case: str, name: str) -> None:
        kind, dtype, self._cache_dtype = CASES[case]
        self._decoder = models.compiled(kind, name, dtype)
        self.alone = cache(self._alone)

    def forwarder(self, num_blocks: int = 500) -> Forwarder:
        made = Forwarder(self._decoder, num_blocks, self._cache_dtype)
        assert isinstance(made.forward_pass, CompiledDecoder)
        return made

    def sequence(self, forwarder: Forwarder, stream: int, length: int) -> Sequence:
        return forwarder.sequence(token_ids(LENGTH, stream)[:length], 20 + 40 * stream)

    def _alone(self, stream: int) -> torch.Tensor:
        """Hidden states of a whole stream computed at once and with nothing beside it."""
        forwarder = self.forwarder()
        sequence = self.sequence(forwarder, stream, LENGTH)
        return forwarder.hidden([Chunk(sequence, 0, LENGTH)])[0]


@pytest.fixture(scope="module")
def cases(models: Models) -> Any:
    return cache(lambda case, name: Case(models, case, name))


# ---- independence ----


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    prompts=st.lists(st.tuples(st.integers(0, 3), st.integers(1, LENGTH)), min_size=1, max_size=6),
    sizes=st.lists(st.integers(0, 80), min_size=1, max_size=12),
)
def test_any_batches(
    cases: Any, name: str, case: str, prompts: list[tuple[int, int]], sizes: list[int]
) -> None:
    """Sequences cut into chunks anyhow, beside each other anyhow."""
    its = cases(case, name)
    forwarder = its.forwarder()
    sequences = [its.sequence(forwarder, *prompt) for prompt in prompts]
    starts, draw = [0] * len(prompts), cycle(sizes)
    while any(start < s.num_tokens for start, s in zip(starts, sequences, strict=True)):
        wanted = [min(next(draw), s.num_tokens - i) for i, s in zip(starts, sequences, strict=True)]
        if not any(wanted):
            wanted = [min(1, s.num_tokens - i) for i, s in zip(starts, sequences, strict=True)]
        taken = [i for i, size in enumerate(wanted) if size]
        chunks = [Chunk(sequences[i], starts[i], wanted[i]) for i in taken]
        for i, chunk, hidden in zip(taken, chunks, forwarder.hidden(chunks), strict=True):
            assert torch.equal(hidden, its.alone(prompts[i][0])[chunk.start : chunk.end])
            starts[i] += wanted[i]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_one_of_32(cases: Any, case: str, name: str) -> None:
    its = cases(case, name)
    forwarder = its.forwarder(1600)
    lengths = [1 + 6 * i for i in range(32)]
    streams = [i % 4 for i in range(32)]
    sequences = [its.sequence(forwarder, s, n + 3) for s, n in zip(streams, lengths, strict=True)]
    steps = [[(i, 0, n) for i, n in enumerate(lengths) if i % 2 == half] for half in (0, 1)]
    steps += [[(i, n + step, 1) for i, n in enumerate(lengths)] for step in range(3)]
    for step in steps:
        found = forwarder.hidden([Chunk(sequences[i], start, n) for i, start, n in step])
        for hidden, (i, start, n) in zip(found, step, strict=True):
            assert torch.equal(hidden, its.alone(streams[i])[start : start + n])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", ["plain", "odd sizes", "window", "4 bits"])
def test_one_token_at_a_time(cases: Any, case: str, name: str) -> None:
    its = cases(case, name)
    forwarder = its.forwarder()
    sequence = its.sequence(forwarder, 0, 140)
    found = [forwarder.hidden([Chunk(sequence, i, 1)])[0] for i in range(140)]
    assert torch.equal(torch.cat(found), its.alone(0)[:140])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_a_prefix_that_was_computed_otherwise(cases: Any, case: str, name: str) -> None:
    """By another sequence in other chunks, or in the same step."""
    its = cases(case, name)
    forwarder = its.forwarder()
    writer, *readers = (its.sequence(forwarder, 1, 240) for _ in range(3))
    for start, size in ((0, 3), (3, 90), (93, 1), (94, 67)):
        forwarder.hidden([Chunk(writer, start, size)])
    for reader in readers:
        reader.block_table[:50] = writer.block_table[:50]
    chunks = [Chunk(readers[0], 156, 84), Chunk(writer, 161, 79), Chunk(readers[1], 200, 40)]
    for chunk, hidden in zip(chunks, forwarder.hidden(chunks), strict=True):
        assert torch.equal(hidden, its.alone(1)[chunk.start : chunk.end])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_cache_held_before(cases: Any, case: str, name: str) -> None:
    """A new cache is full of NaN here; this one has numbers, and blocks of others around."""
    its = cases(case, name)
    forwarder = its.forwarder(200)
    generator = torch.Generator().manual_seed(0)
    for tensor in forwarder.kv_cache.tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 100)
    sequence = its.sequence(forwarder, 2, 203)
    found = [forwarder.hidden([Chunk(sequence, i, n)])[0] for i, n in ((0, 150), (150, 53))]
    assert torch.equal(torch.cat(found), its.alone(2)[:203])


# ---- what is not finite ----

BROKEN = 5  # a token, or an element
TYPES = [(FLOAT32, "auto"), (BFLOAT16, "auto"), (FLOAT32, "int8"), (BFLOAT16, "int8")]
VALUES = [float("nan"), float("inf"), float("-inf")]


def load(model: Any, folder: Path, name: str, dtype: torch.dtype) -> Decoder:
    checkpoint = Checkpoint.open(tiny_models.write(model, folder))
    return load_decoder(checkpoint, dtype, torch.device("cpu"), CpuBackend(variant=name))


def prompts_around(broken: bool) -> list[list[int]]:
    """Three, of which the second has the broken token seventh and third from the end."""
    prompts = [[i + 6 for i in token_ids(n, n)] for n in (9, 20, 140)]
    prompts = [[i % 90 + 6 for i in prompt] for prompt in prompts]
    if broken:
        prompts[1][7] = prompts[1][-3] = BROKEN
    return prompts


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "cache_dtype"), TYPES)
@pytest.mark.parametrize("value", VALUES)
def test_a_broken_token(
    tmp_path: Path, name: str, dtype: torch.dtype, cache_dtype: Any, value: float
) -> None:
    model = tiny_models.build("llama")
    model.model.embed_tokens.weight.data[BROKEN, 3] = value
    decoder = load(model, tmp_path, name, dtype)
    results = []
    for broken in (False, True):
        forwarder = Forwarder(decoder, kv_cache_dtype=cache_dtype)
        sequences = [forwarder.sequence(prompt) for prompt in prompts_around(broken)]
        sizes = [s.num_tokens - 4 for s in sequences]
        step = [Chunk(s, 0, n) for s, n in zip(sequences, sizes, strict=True)]
        found = forwarder.hidden(step)
        step = [Chunk(s, n, 4) for s, n in zip(sequences, sizes, strict=True)]
        both = [found, forwarder.hidden(step)]
        results.append([torch.cat(pair) for pair in zip(*both, strict=True)])
    clean, broken_ones = results
    assert clean[1].isfinite().all()
    assert not broken_ones[1][7:].isfinite().any()
    for i in (0, 2):
        assert torch.equal(broken_ones[i], clean[i])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "cache_dtype"), TYPES)
@pytest.mark.parametrize(
    ("kind", "block_size"), [("llama", 4), ("baichuan-13b", 4), ("qwen3-128", 16)]
)
def test_broken_keys_and_values(
    models: Models, name: str, dtype: torch.dtype, cache_dtype: Any, kind: str, block_size: int
) -> None:
    """In a slot of one sequence, whether its last chunk is one token or several."""
    decoder = models.compiled(kind, name, dtype)
    lengths = (9, 150, 140)
    for num_new in (1, 20):
        for half, value in [(None, 0.0)] + [(h, v) for h in ("keys", "values") for v in VALUES]:
            forwarder = Forwarder(decoder, 200, cache_dtype, block_size)
            sequences = [forwarder.sequence(token_ids(n + num_new, n)) for n in lengths]
            forwarder.hidden([Chunk(s, 0, n) for s, n in zip(sequences, lengths, strict=True)])
            if half is not None:
                slot = sequences[1].block_table[0] * block_size + 3
                slots = getattr(forwarder.kv_cache.layers[1], half)
                if isinstance(slots, Int8Slots):
                    slots.scales[slot, 1, 0] = value
                else:
                    positions = tile_positions(slots, are_keys=half == "keys")
                    slots.data.view(-1)[positions[slot, 1, 0]] = value
            step = [Chunk(s, n, num_new) for s, n in zip(sequences, lengths, strict=True)]
            found = forwarder.hidden(step)
            if half is None:
                clean = found
                assert torch.cat(clean).isfinite().all()
                continue
            assert not found[1].isfinite().any(), (half, value)
            assert torch.equal(found[0], clean[0]) and torch.equal(found[2], clean[2])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "cache_dtype"), TYPES)
@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
def test_broken_numbers_are_stored_as_such(
    tmp_path: Path, name: str, dtype: torch.dtype, cache_dtype: Any, projection: str
) -> None:
    """Wherever they are among the numbers that share a scale."""
    for element in (0, 5, 7):
        for value in (float("nan"), float("inf")):
            model = tiny_models.build("llama")
            attention = model.model.layers[2].self_attn
            getattr(attention, projection).weight.data[element, 2] = value
            decoder = load(model, tmp_path / f"{element}{value}", name, dtype)
            forwarder = Forwarder(decoder, kv_cache_dtype=cache_dtype)
            (hidden,) = forwarder.hidden([Chunk(forwarder.sequence(token_ids(10)), 0, 10)])
            assert not hidden.isfinite().any(), (element, value)
