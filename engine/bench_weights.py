"""What packed weights cost or gain: `python -m engine.bench_weights --model PATH`.

The model alone, without scheduling and sampling: decode steps of several sequences after 64 tokens
each, and the prefill of 512 tokens. Weights as they are served and widened to BF16 take turns, so
that what else the machine does falls on both.
"""

import argparse
import statistics
import time
from functools import partial

from engine.process import set_thread_policy

_PROMPT_LENGTH, _PREFILL_LENGTH, _STEPS, _BLOCK_SIZE = 64, 512, 5, 16
_BATCHES = (1, 4, 8, 16, 32)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="engine.bench_weights", description=__doc__)
    parser.add_argument("--model", required=True, help="a local folder or .gguf file")
    parser.add_argument("--quantization", choices=["int8", "int4"])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    set_thread_policy()
    import torch

    from engine.backends.cpu import CpuBackend
    from engine.backends.reference import ReferenceBackend
    from engine.checkpoint import Checkpoint
    from engine.load_report import weight_bytes
    from engine.weights import load_decoder

    checkpoint, cpu = Checkpoint.open(args.model), torch.device("cpu")
    packed = load_decoder(checkpoint, torch.bfloat16, cpu, CpuBackend(), args.quantization)
    widened = load_decoder(checkpoint, torch.bfloat16, cpu, ReferenceBackend())
    print(f"MB of weights: packed {weight_bytes(packed) / 1e6:.0f}, ", end="")
    print(f"widened {weight_bytes(widened) / 1e6:.0f}")
    print("sequences  tokens  packed tok/s  widened tok/s  ratio")
    for num_sequences, num_tokens in [(n, 1) for n in _BATCHES] + [(1, _PREFILL_LENGTH)]:
        runs = [_Run(decoder, num_sequences, num_tokens) for decoder in (packed, widened)]
        rounds = [[run.seconds() for run in runs] for _ in range(args.rounds)]
        speeds = [
            num_sequences * num_tokens / statistics.median(seconds)
            for seconds in zip(*rounds, strict=True)
        ]
        ratio = statistics.median(slow / fast for fast, slow in rounds)
        print(
            f"{num_sequences:9}  {num_tokens:6}  {speeds[0]:12.1f}  {speeds[1]:13.1f}  {ratio:.2f}",
            flush=True,
        )


class _Run:
    """Steps of one decoder, each computing `num_tokens` of every sequence."""

    def __init__(self, decoder: object, num_sequences: int, num_tokens: int) -> None:
        import torch

        from engine.batch import Batch
        from engine.kv_cache import KVCache
        from engine.messages import EngineRequest, SamplingParams
        from engine.models.decoder import Decoder
        from engine.sequence import Chunk, Sequence

        assert isinstance(decoder, Decoder)
        length = num_tokens if num_tokens > 1 else _PROMPT_LENGTH + 1
        num_blocks = -(-length // _BLOCK_SIZE)
        cache = KVCache.allocate(
            decoder.config,
            num_sequences * num_blocks,
            _BLOCK_SIZE,
            decoder.dtype,
            decoder.device,
        )
        chunks = []
        theta = decoder.config.rope_theta(length)
        for i in range(num_sequences):
            request = EngineRequest(
                id=str(i),
                prompt_token_ids=list(range(100, 100 + length)),
                sampling=SamplingParams(max_tokens=1),
            )
            sequence = Sequence(request, arrival=i, rope_theta=theta)
            sequence.block_table = list(range(i * num_blocks, (i + 1) * num_blocks))
            chunks.append(Chunk(sequence, length - num_tokens, num_tokens))
        before = [Chunk(c.sequence, 0, c.start) for c in chunks if c.start]

        def compute(step: list[Chunk]) -> None:
            with torch.inference_mode():
                batch = Batch.build(step, _BLOCK_SIZE, decoder.device)
                hidden = decoder.forward(batch, cache)
                decoder.compute_logits(hidden[[end - 1 for end in batch.query_starts[1:]]])

        if before:
            compute(before)
        self._step = partial(compute, chunks)
        self._repeats = _STEPS if num_tokens == 1 else 1
        self._step()  # warm-up

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._step()
        return (time.perf_counter() - start) / self._repeats


if __name__ == "__main__":
    main()
