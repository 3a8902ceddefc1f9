"""What a decode step costs beside the model: `python -m engine.bench --model PATH`.

Runs the engine's own loop over its real queue on a real model, with clocks around the parts: the
model (forward pass and logits), the sampler, and all the rest, which is scheduling, laying out the
batch, deciding what is finished, and encoding and sending the events. The events are not read
meanwhile, so that nothing else runs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec
import zmq

from engine import codec
from engine.config import EngineConfig
from engine.core import Engine
from engine.messages import EngineRequest, SamplingParams
from engine.process import EngineLoop, set_thread_policy
from engine.transport import RouterTransport

if TYPE_CHECKING:  # imports torch
    from engine.model_runner import ModelRunner

_PROMPT_LENGTH = 64
_WARM_UP_STEPS = 5

# the cheapest choice of a token, one as Qwen's checkpoints ask for, and the whole vocabulary
_SAMPLING = {
    "greedy": SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0),
    "qwen": SamplingParams(
        max_tokens=1,
        ignore_eos=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.1,
    ),
    "plain": SamplingParams(max_tokens=1, ignore_eos=True, temperature=1.0),
}


@dataclass(slots=True)
class Step:
    """Seconds of one step. `started` is a reading of the clock."""

    started: float
    num_events: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "sampler": 0.0})


class Clock:
    """Times the parts of an engine's steps, and stops `loop` when nothing is left to do."""

    def __init__(self, engine: Engine, loop: EngineLoop) -> None:
        self.steps: list[Step] = []
        runner = cast("ModelRunner", engine.runner)
        self._engine, self._loop = engine, loop
        self._undo: list[tuple[object, str]] = []
        self._wrap(engine, "step", self._step)
        self._wrap(runner.decoder, "logits", self._part("model"))
        self._wrap(runner.decoder, "compute_logits", self._part("model"))
        self._wrap(runner.sampler, "sample", self._part("sampler"))

    def close(self) -> None:
        """Take the clocks off again."""
        for owner, name in self._undo:
            delattr(owner, name)

    def _wrap(self, owner: object, name: str, clock: Callable[..., Any]) -> None:
        setattr(owner, name, clock(getattr(owner, name)))  # hides the method of the class
        self._undo.append((owner, name))

    def _step(self, step: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
        def timed() -> list[Any]:
            self.steps.append(Step(time.perf_counter()))
            events = step()
            self.steps[-1].num_events = len(events)
            if not self._engine.has_work:
                self._loop.stop()
            return events

        return timed

    def _part(self, name: str) -> Callable[..., Any]:
        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any) -> Any:
                started = time.perf_counter()
                result = function(*args)
                self.steps[-1].seconds[name] += time.perf_counter() - started
                return result

            return timed

        return wrap


def measure(
    engine: Engine, address: str, num_sequences: int, num_steps: int, sampling: SamplingParams
) -> dict[str, float]:
    """Medians in milliseconds over the steps in which all sequences get one token.

    Each sequence makes `num_steps` tokens, whatever `sampling` says of their number and its seed.
    `engine` is one that load_engine returned; `address` is for a queue of this call's own.
    """
    transport = RouterTransport(address)
    loop = EngineLoop(engine, transport)
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(address)
    client.send(codec.encode(_requests(num_sequences, num_steps, sampling)))
    clock = Clock(engine, loop)
    loop.run()
    clock.close()
    client.close()
    context.term()
    transport.close()
    following = clock.steps[_WARM_UP_STEPS + 1 :]
    rows: dict[str, list[float]] = {"step": [], "model": [], "sampler": [], "rest": []}
    for step, after in zip(clock.steps[_WARM_UP_STEPS:-1], following, strict=True):
        if step.num_events == num_sequences:
            whole, parts = after.started - step.started, step.seconds
            rows["step"].append(whole)
            rows["model"].append(parts["model"])
            rows["sampler"].append(parts["sampler"])
            rows["rest"].append(whole - sum(parts.values()))
    return {name: statistics.median(values) * 1000 for name, values in rows.items()}


def _requests(num_sequences: int, num_steps: int, sampling: SamplingParams) -> list[EngineRequest]:
    """Prompts that share no prefix, so that none waits for another's blocks."""
    return [
        EngineRequest(
            id=f"{i}",
            prompt_token_ids=[i] * _PROMPT_LENGTH,
            sampling=msgspec.structs.replace(sampling, seed=i, max_tokens=num_steps),
        )
        for i in range(num_sequences)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="engine.bench", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--num-steps", type=int, default=60, help="tokens of each sequence")
    args = parser.parse_args()
    set_thread_policy()
    from engine.load import load_engine  # imports torch, which reads the policy

    config = {"model": args.model, "dtype": args.dtype, "device": args.device}
    config["speculation"] = "off"  # a step is to give each sequence one token
    engine = load_engine(
        msgspec.convert({**config, "max_num_seqs": max(args.num_seqs)}, EngineConfig)
    )
    print(f"{engine.info.backend} backend, {engine.info.device}, {engine.info.dtype}")
    print("sequences  sampling  step ms  model ms  sampler ms  rest ms  sampler+rest of step")
    with tempfile.TemporaryDirectory() as folder:
        for num_sequences in args.num_seqs:
            for name, sampling in _SAMPLING.items():
                ms = measure(
                    engine, f"ipc://{folder}/queue", num_sequences, args.num_steps, sampling
                )
                own = (ms["sampler"] + ms["rest"]) / ms["step"]
                print(
                    f"{num_sequences:9}  {name:8}  {ms['step']:7.2f}  {ms['model']:8.2f}  "
                    f"{ms['sampler']:10.3f}  {ms['rest']:7.3f}  {own:.1%}"
                )


if __name__ == "__main__":
    main()
