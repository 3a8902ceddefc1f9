"""vLLM without a server, for loadtest/offline.py, which runs this file by the Python of vLLM's
virtual environment. Imports nothing of ours: it is not installed there.

Reads what to measure from its input, one JSON object a line as `engine.bench_batched --worker`
does, and answers each with tokens per second: of a prompt up to its first token, or of sequences
that decode together while none of them has prompt left.
"""

import argparse
import json
import random
import sys
import time
from typing import Any

_REPLY = "result "


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    args = parser.parse_args()
    from vllm import LLM

    llm = LLM(
        model=args.model,
        dtype="bfloat16",
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        disable_log_stats=True,
    )
    engine = llm.llm_engine
    vocab_size = llm.get_tokenizer().vocab_size
    _tell({"ready": True})
    for line in sys.stdin:
        cell = json.loads(line)
        generator = random.Random(line)
        prompts = [
            [
                generator.randrange(vocab_size // 8, vocab_size // 2)
                for _ in range(cell["num_prompt_tokens"])
            ]
            for _ in range(cell["num_streams"] or 1)
        ]
        if cell["num_streams"] == 0:
            speed = _prefill(engine, prompts[0])
        else:
            speed = _decode(engine, prompts, cell["num_steps"])
        _tell({"tokens_per_s": speed})


def _tell(reply: dict[str, object]) -> None:
    print(f"{_REPLY}{json.dumps(reply)}", flush=True)


def _add(engine: Any, name: str, prompt: list[int], num_tokens: int) -> None:
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    engine.add_request(name, {"prompt_token_ids": prompt}, sampling)


def _prefill(engine: Any, prompt: list[int]) -> float:
    started = time.perf_counter()
    _add(engine, "prefill", prompt, 1)
    while engine.has_unfinished_requests():
        engine.step()
    return len(prompt) / (time.perf_counter() - started)


def _decode(engine: Any, prompts: list[list[int]], num_steps: int) -> float:
    """From when the last sequence has its first token to when the first one has all."""
    num_tokens = num_steps + len(prompts)  # those whose prompts came first are ahead
    for i, prompt in enumerate(prompts):
        _add(engine, f"decode {i}", prompt, num_tokens)
    lengths: dict[str, int] = {}
    started, before = 0.0, 0
    speed = 0.0
    while engine.has_unfinished_requests():
        outputs = engine.step()
        for output in outputs:
            lengths[output.request_id] = len(output.outputs[0].token_ids)
        if started == 0.0 and len(lengths) == len(prompts):
            started, before = time.perf_counter(), sum(lengths.values())
        if speed == 0.0 and any(output.finished for output in outputs):
            speed = (sum(lengths.values()) - before) / (time.perf_counter() - started)
    return speed


if __name__ == "__main__":
    main()
