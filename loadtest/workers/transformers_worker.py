"""transformers' prefill, for loadtest/offline.py, which runs this file by a Python that has it.

Reads what to measure from its input, one JSON object a line as `engine.bench_batched --worker`
does, and answers each with tokens per second of one forward pass over a prompt, whose cache is kept
and whose last logits are computed. Only prefill: its decode is not made for serving.
"""

import argparse
import json
import random
import sys
import time

_REPLY = "result "


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in the hub's layout")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    vocab_size = model.config.vocab_size
    _tell({"ready": True})
    for line in sys.stdin:
        cell = json.loads(line)
        generator = random.Random(line)
        prompt = [
            generator.randrange(vocab_size // 8, vocab_size // 2)
            for _ in range(cell["num_prompt_tokens"])
        ]
        with torch.inference_mode():
            started = time.perf_counter()
            model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
            seconds = time.perf_counter() - started
        _tell({"tokens_per_s": cell["num_prompt_tokens"] / seconds})


def _tell(reply: dict[str, object]) -> None:
    print(f"{_REPLY}{json.dumps(reply)}", flush=True)


if __name__ == "__main__":
    main()
