"""Engines around tiny models in float32 on the reference backend, with a speculator or without."""

from pathlib import Path

import torch

from engine import weights
from engine.backends.reference import ReferenceBackend
from engine.checkpoint import Checkpoint
from engine.core import Engine
from engine.kv_cache import KVCache
from engine.messages import EngineInfo
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.sampler import Sampler
from engine.speculation.draft_model import DraftModel
from engine.speculation.speculator import Speculator
from tests.engine.tiny_models import VOCAB_SIZE

EOS = 2
BLOCK_SIZE = 4
CPU = torch.device("cpu")


def load(folder: Path) -> Decoder:
    return weights.load_decoder(Checkpoint.open(folder), torch.float32, CPU, ReferenceBackend())


def make_cache(decoder: Decoder, num_blocks: int) -> KVCache:
    cache = KVCache.allocate(decoder.config, num_blocks, BLOCK_SIZE, torch.float32, CPU)
    for tensor in cache.tensors():  # what reads a slot that nobody wrote is found out
        tensor.fill_(float("nan"))
    return cache


def tiny_engine(
    decoder: Decoder,
    *,
    num_blocks: int = 200,
    max_model_len: int = 200,
    max_num_batched_tokens: int = 64,
    speculator: Speculator | None = None,
) -> Engine:
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        dtype="float32",
        device="cpu",
        backend="reference",
    )
    sampler = Sampler(VOCAB_SIZE, [EOS])
    cache = make_cache(decoder, num_blocks)
    return Engine(
        ModelRunner(decoder, cache, sampler, info, CPU, VOCAB_SIZE),
        info,
        eos_token_ids=[EOS],
        max_num_seqs=6,
        max_num_batched_tokens=max_num_batched_tokens,
        speculator=speculator,
    )


def draft_model(decoder: Decoder, num_blocks: int = 200) -> DraftModel:
    """Its clock stands still."""
    cache = make_cache(decoder, num_blocks)
    return DraftModel(decoder, cache, CPU, VOCAB_SIZE, clock=lambda: 0.0)
