"""Prefill and decode speed of the engine without a server: `python -m engine.bench_batched`.

What llama.cpp's llama-bench and llama-batched-bench measure, through `Engine.add` and
`Engine.step`: tokens per second of a prompt that no cache holds, and of N sequences that decode
together after prompts of their own; greedy, past any end of text. `--grid` gives instead the time
of a step against the number of sequences and the length of their context. `--worker` reads what to
measure from its input, one JSON object a line, so that loadtest/offline.py can let it take turns
with other programs.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from engine.config import EngineConfig
from engine.core import Engine
from engine.messages import EngineRequest, Finished, SamplingParams, TokenEvent
from engine.process import set_thread_policy
from engine.sequence import Chunk
from engine.sequence import Sequence as TokenSequence

if TYPE_CHECKING:  # imports torch
    from engine.kv_cache import KVCache
    from engine.model_runner import ModelRunner

_GRID_CONTEXTS = (128, 512, 2048, 8192)
_GRID_STREAMS = (1, 2, 4, 8, 16, 32, 64)
_GRID_STEPS = 5
_TEMPLATE_NUMBERS = 1 << 22
_REPLY = "result "  # begins the lines of a worker that are answers


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: without streams, the prefill of a prompt; else so many streams' decode."""

    num_prompt_tokens: int
    num_streams: int = 0
    num_steps: int = 64  # of decode that are timed
    seed: int = 0  # of the prompts: another one meets no cached prefix

    @property
    def title(self) -> str:
        if self.num_streams == 0:
            return f"prefill {self.num_prompt_tokens}"
        return f"decode {self.num_streams} after {self.num_prompt_tokens}"


def tokens_per_s(engine: Engine, cell: Cell) -> float:
    """Measure one cell. `engine` is one that load_engine returned, with nothing to do."""
    generator = random.Random(f"{cell}")
    if cell.num_streams == 0:
        return _prefill(engine, _prompt(engine, generator, cell.num_prompt_tokens))
    prompts = [_prompt(engine, generator, cell.num_prompt_tokens) for _ in range(cell.num_streams)]
    return _decode(engine, prompts, cell.num_steps)


def _prompt(engine: Engine, generator: random.Random, length: int) -> list[int]:
    """Tokens that share no prefix with another prompt; the ids at both ends may be special."""
    size = engine.info.vocab_size
    return [generator.randrange(size // 8, size // 2) for _ in range(length)]


def _request(name: str, prompt: list[int], max_tokens: int) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
    return EngineRequest(id=name, prompt_token_ids=prompt, sampling=sampling)


def _prefill(engine: Engine, prompt: list[int]) -> float:
    """Of the prompt's tokens, up to the first token of output."""
    engine.add(_request("prefill", prompt, 1))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return len(prompt) / (time.perf_counter() - started)


def _decode(engine: Engine, prompts: list[list[int]], num_steps: int) -> float:
    """Of the output of all sequences in steps in which none of them has prompt left.

    Those whose prompts came first are ahead, so all are asked for more than is timed.
    """
    names = [str(i) for i in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add(_request(name, prompt, engine.info.max_model_len))
    waiting = set(names)
    while waiting:
        waiting -= {event.id for event in engine.step() if isinstance(event, TokenEvent)}
    num_tokens = 0
    started = time.perf_counter()
    for _ in range(num_steps):
        events = engine.step()
        if any(isinstance(event, Finished) for event in events):
            raise RuntimeError("a sequence ended within the steps that are timed")
        num_tokens += sum(len(event.token_ids) for event in events if isinstance(event, TokenEvent))
    seconds = time.perf_counter() - started
    for name in names:
        engine.abort(name)
    return num_tokens / seconds


def step_s(engine: Engine, num_streams: int, context: int) -> float | None:
    """Median seconds of a decode step of `num_streams` sequences that attend to `context` tokens.

    None where the KV cache does not hold them. It must have been filled with numbers by `fill`:
    no prompt is computed. What the engine's prefix cache held is lost.
    """
    runner = engine.runner
    block_size = engine.info.block_size
    num_blocks = -(-context // block_size)
    if num_streams * num_blocks > engine.info.num_blocks or context > engine.info.max_model_len:
        return None
    generator = random.Random(context)
    chunks = []
    for i in range(num_streams):
        request = _request(str(i), _prompt(engine, generator, context), 1)
        sequence = TokenSequence(request, arrival=i, rope_theta=runner.rope_theta(context))
        sequence.block_table = list(range(i * num_blocks, (i + 1) * num_blocks))
        chunks.append(Chunk(sequence, context - 1, 1))
    times = []
    for _ in range(1 + _GRID_STEPS):
        started = time.perf_counter()
        runner.run(chunks)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def fill(kv_cache: "KVCache") -> None:
    """Write random numbers all over the cache: memory never written would all be one page."""
    import torch

    for tensor in kv_cache.tensors():
        numbers = tensor.flatten()
        size = min(_TEMPLATE_NUMBERS, len(numbers))
        if tensor.dtype.is_floating_point:
            template = torch.randn(size).to(tensor.dtype)
        else:
            template = torch.randint(-127, 128, (size,), dtype=tensor.dtype)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            part.copy_(template[: len(part)])


def work(engine: Engine, lines: Iterable[str], tell: Callable[[str], None]) -> None:
    """Measure the cell of each line and tell the result, until the lines end."""
    tell(f"{_REPLY}{json.dumps({'ready': True})}")
    for line in lines:
        speed = tokens_per_s(engine, msgspec.json.decode(line, type=Cell))
        tell(f"{_REPLY}{json.dumps({'tokens_per_s': speed})}")


def _rounds(engine: Engine, cells: Sequence[Cell], num_rounds: int) -> dict[str, list[float]]:
    """Of each cell its speeds; the cells take turns. The first round only warms up."""
    speeds: dict[str, list[float]] = {cell.title: [] for cell in cells}
    for i in range(-1, num_rounds):
        for cell in cells:
            speed = tokens_per_s(engine, msgspec.structs.replace(cell, seed=i))
            if i >= 0:
                speeds[cell.title].append(speed)
    return speeds


def _grid(engine: Engine) -> dict[str, list[float | None]]:
    """Milliseconds of a step: for each context a list over the numbers of sequences."""
    fill(cast("ModelRunner", engine.runner).kv_cache)
    print("context  " + "  ".join(f"{n:>7}" for n in _GRID_STREAMS) + "  sequences")
    grid: dict[str, list[float | None]] = {}
    for context in _GRID_CONTEXTS:
        row = [step_s(engine, n, context) for n in _GRID_STREAMS]
        ms = [None if seconds is None else seconds * 1000 for seconds in row]
        shown = ["      -" if value is None else f"{value:7.1f}" for value in ms]
        print(f"{context:7}  {'  '.join(shown)}  ms a step", flush=True)
        grid[str(context)] = ms
    return grid


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="engine.bench_batched", description=__doc__)
    parser.add_argument("--model", required=True, help="a local folder or .gguf file")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048], metavar="TOKENS")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the decode")
    parser.add_argument("--steps", type=int, default=64, help="of decode that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--grid", action="store_true", help="step times instead")
    parser.add_argument("--kv-cache-gib", type=float, help="default: the engine's, with --grid 8")
    parser.add_argument("--engine", default="{}", metavar="JSON", help="more of EngineConfig")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _load(args: argparse.Namespace) -> Engine:
    set_thread_policy()
    from engine.load import load_engine  # imports torch, which reads the policy

    options: dict[str, object] = {"model": args.model, "num_threads": args.threads}
    gib = args.kv_cache_gib or (8 if args.grid else None)
    if gib is not None:
        options["kv_cache_memory_bytes"] = int(gib * 2**30)
    return load_engine(msgspec.convert(options | json.loads(args.engine), EngineConfig))


def main() -> None:
    """Command line."""
    args = _parser().parse_args()
    engine = _load(args)
    if args.worker:
        work(engine, sys.stdin, lambda line: print(line, flush=True))
    else:
        _report(engine, args)
    engine.close()


def _report(engine: Engine, args: argparse.Namespace) -> None:
    print(f"{engine.info.backend} backend, {engine.info.device}, {engine.info.dtype}")
    figures: dict[str, object] = {"model": args.model, "engine": msgspec.to_builtins(engine.info)}
    if args.grid:
        figures["step_ms"] = {"sequences": list(_GRID_STREAMS), "by_context": _grid(engine)}
    else:
        cells = [Cell(num_prompt_tokens=n) for n in args.prefill]
        cells += [
            Cell(num_prompt_tokens=args.prompt, num_streams=n, num_steps=args.steps)
            for n in args.streams
        ]
        speeds = _rounds(engine, cells, args.rounds)
        for title, values in speeds.items():
            median, least, most = statistics.median(values), min(values), max(values)
            print(f"{title:22} {median:8.1f} tokens/s ({least:.1f} to {most:.1f})")
        figures["tokens_per_s"] = speeds
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


if __name__ == "__main__":
    main()
