"""Qwen v1, Baichuan2 and ChatGLM through the decoder, against references written on their own."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.layers.positions import alibi_slopes
from engine.models import chatglm as chatglm_family
from engine.models import qwen
from engine.models.rope import Rope, RopeScaling
from engine.sequence import Chunk
from engine.weights import load_decoder
from tests.engine import seed_models
from tests.engine.forwarding import Forwarder
from tests.engine.references import baichuan2, chatglm, qwen_v1

LENGTHS = [1, 20, 32, 33, 64, 65, 140]  # around 32, the length that tiny Qwen v1 is trained on


def forwarder(folder: Path) -> Forwarder:
    checkpoint = Checkpoint.open(folder)
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"), ReferenceBackend())
    return Forwarder(decoder)


def ids(length: int, vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()


def assert_equal(logits: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_qwen_v1(tmp_path: Path, length: int, dynamic: bool) -> None:
    weights, config = seed_models.write_qwen_v1(
        tmp_path, use_dynamic_ntk=dynamic, use_logn_attn=dynamic, rotary_emb_base=1000
    )
    run, prompt = forwarder(tmp_path), ids(length, 512)
    wanted = qwen_v1.forward(weights, config, prompt, length)
    for chunk_size in (length, 7):
        assert_equal(run.logits(prompt, chunk_size), wanted)


@pytest.mark.parametrize("num_prompt_tokens", [10, 32, 40, 70])
def test_qwen_v1_keeps_the_angles_of_its_prompt(tmp_path: Path, num_prompt_tokens: int) -> None:
    """While a sequence grows past the next step of alpha; LogN follows each position."""
    weights, config = seed_models.write_qwen_v1(tmp_path)
    run, tokens = forwarder(tmp_path), ids(140, 512)
    wanted = qwen_v1.forward(weights, config, tokens, num_prompt_tokens)
    assert_equal(run.logits(tokens, 9, num_prompt_tokens), wanted)
    other = qwen_v1.forward(weights, config, tokens, 140)
    assert (other - wanted).abs().max() > 0.1


def test_qwen_v1_sequences_of_one_step_have_their_own_angles(tmp_path: Path) -> None:
    weights, config = seed_models.write_qwen_v1(tmp_path)
    run = forwarder(tmp_path)
    prompts = [ids(length, 512) for length in LENGTHS]
    sequences = [run.sequence(prompt) for prompt in prompts]
    heads = run.step([Chunk(s, 0, s.num_tokens - 1) for s in sequences[1:]])
    tails = run.step([Chunk(s, s.num_tokens - 1, 1) for s in sequences])
    for prompt, head, tail in zip(prompts[1:], heads, tails[1:], strict=True):
        wanted = qwen_v1.forward(weights, config, prompt, len(prompt))
        assert_equal(torch.cat((head, tail)), wanted)


@pytest.mark.parametrize("kind", ["7b", "13b"])
def test_baichuan2(tmp_path: Path, kind: str) -> None:
    weights, config = seed_models.write_baichuan2(tmp_path, kind)
    run = forwarder(tmp_path)
    for length in (1, 60):
        prompt = ids(length, 1000)
        wanted = baichuan2.forward(weights, config, prompt)
        for chunk_size in (length, 7):
            assert_equal(run.logits(prompt, chunk_size), wanted)


# The first logits after 70 tokens, the first 40 of them the prompt and then one a step, that the
# modeling files of the models' authors gave in float32 for the checkpoints of seed_models.
AUTHORS_LOGITS: list[tuple[str, dict[str, Any], list[float]]] = [
    ("qwen", {}, [-0.4730, -0.0116, 0.1190, 0.9393, 1.6313]),
    ("baichuan", {"kind": "7b"}, [-0.1412, 1.1690, 1.9768, 0.8513, 0.0804]),
    ("baichuan", {"kind": "13b"}, [0.3402, 0.8287, 0.5615, 1.0203, -0.7389]),
    ("chatglm", {}, [0.2019, 0.5982, 0.2458, 0.3150, 0.9105]),
    (
        "chatglm",
        {"rope_ratio": 16, "_name_or_path": "THUDM/chatglm2-6b-32k"},
        [0.2623, 0.5894, 0.2415, 0.2576, 0.9511],
    ),
]


@pytest.mark.parametrize(("family", "options", "wanted"), AUTHORS_LOGITS)
def test_the_authors_own_logits(
    tmp_path: Path, family: str, options: dict[str, Any], wanted: list[float]
) -> None:
    tokens = ids(70, 480)
    if family == "qwen":
        weights, config = seed_models.write_qwen_v1(tmp_path, **options)
        reference = qwen_v1.forward(weights, config, tokens, 40)
    elif family == "baichuan":
        weights, config = seed_models.write_baichuan2(tmp_path, **options)
        reference = baichuan2.forward(weights, config, tokens)
    else:
        weights, config = seed_models.write_chatglm(tmp_path, **options)
        reference = chatglm.forward(weights, config, tokens)
    for logits in (reference, forwarder(tmp_path).logits(tokens, 7, 40)):
        torch.testing.assert_close(logits[-1, :5], torch.tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_ratio": 50},
        {"rope_ratio": 16, "_name_or_path": "THUDM/chatglm2-6b-32k"},
        {"rope_ratio": 1, "_name_or_path": "/data/mine"},
    ],
)
def test_chatglm(tmp_path: Path, options: dict[str, Any]) -> None:
    weights, config = seed_models.write_chatglm(tmp_path, **options)
    run = forwarder(tmp_path)
    for length in (1, 60):
        prompt = ids(length, 480)
        wanted = chatglm.forward(weights, config, prompt)
        for chunk_size in (length, 7):
            assert_equal(run.logits(prompt, chunk_size), wanted)


def test_chatglm_rope_ratio_needs_a_version(tmp_path: Path) -> None:
    """The second divides positions by it and the third multiplies the base."""
    _, config = seed_models.write_chatglm(tmp_path)
    for name, theta, factor in (("THUDM/chatglm2-6b-32k", 1e4, 16), ("/x/ChatGLM3-32k", 16e4, 1)):
        options = {"rope_ratio": 16, "_name_or_path": name}
        rope = chatglm_family.CHATGLM.decoder_config(config | options).rope
        assert rope is not None and (rope.theta, rope.scaling.factor) == (theta, factor)
    with pytest.raises(CheckpointError, match="rope_ratio = 16 means one thing"):
        chatglm_family.CHATGLM.decoder_config(config | {"rope_ratio": 16, "_name_or_path": "/x"})


def test_published_ntk_bases() -> None:
    """Of a base of 10000 and heads of 128."""
    for seq_length, length, base in (
        (8192, 8192, 10000.0),
        (8192, 8193, 30527.737),
        (8192, 16384, 30527.737),
        (8192, 16385, 72195.860),
        (8192, 32768, 72195.860),
        (2048, 8192, 72195.860),
        (2048, 2048, 10000.0),
        (2048, 1, 10000.0),
    ):
        scaling = RopeScaling("qwen", original_max_position_embeddings=seq_length)
        assert math.isclose(Rope(10000.0, 128, scaling).theta_for(length), base, rel_tol=1e-6)
        alpha = qwen_v1.ntk_alpha(length, seq_length)
        assert math.isclose(qwen_v1.ntk_base(10000.0, alpha, 128), base, rel_tol=1e-6)


def test_published_logn_factors() -> None:
    assert math.isclose(qwen_v1.logn(16384, 8192)[-1], 1.076923, abs_tol=1e-6)
    assert math.isclose(qwen_v1.logn(8192, 2048)[-1], 1.181818, abs_tol=1e-6)


def test_published_alibi_slopes() -> None:
    """Of Baichuan2-13B's 40 heads: exponents of two, the last eight appended and not sorted in."""
    exponents = [-0.25 * (i + 1) for i in range(32)] + [-0.125 - 0.25 * i for i in range(8)]
    wanted = torch.tensor([2.0**e for e in exponents])
    torch.testing.assert_close(alibi_slopes(40), wanted)
    torch.testing.assert_close(torch.tensor(baichuan2.slopes(40)), wanted)


def test_qwen_v1_counts_both_halves_of_its_network_together(tmp_path: Path) -> None:
    _, config = seed_models.write_qwen_v1(tmp_path, seq_length=300)
    decoder = qwen.QWEN.decoder_config(config)
    assert (decoder.intermediate_size, decoder.max_position_embeddings) == (72, 300)
    with pytest.raises(CheckpointError, match="are not hidden_size 48"):
        qwen.QWEN.decoder_config(config | {"kv_channels": 16})
