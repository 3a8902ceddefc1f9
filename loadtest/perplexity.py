"""How well a served model predicts a text: `python -m loadtest.perplexity --model MODEL FILE ...`.

Starts `qwen-serve serve` without options and then once for each `--variant="--some option"`, sends
the text piece by piece to /v1/completions with echo and logprobs, and reports exp of the mean
negative log-likelihood of the tokens, each predicted from those before it in its piece.
"""

import argparse
import math
import shlex
from pathlib import Path

import httpx

from loadtest.servers import serving


def perplexity(client: httpx.Client, model: str, pieces: list[str]) -> tuple[float, int]:
    """(perplexity, number of tokens that were predicted)."""
    total, count = 0.0, 0
    for piece in pieces:
        body = {"model": model, "prompt": piece, "echo": True, "logprobs": 0, "max_tokens": 0}
        response = client.post("/completions", json=body)
        response.raise_for_status()
        logprobs = response.json()["choices"][0]["logprobs"]["token_logprobs"]
        total -= sum(logprobs[1:])  # nothing comes before the first
        count += len(logprobs) - 1
    return math.exp(total / count), count


def cut(text: str, size: int) -> list[str]:
    """Pieces of the text, the last perhaps shorter."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.perplexity", description=__doc__)
    parser.add_argument("--model", required=True, help="as for qwen-serve serve")
    parser.add_argument("--variant", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("--piece", type=int, default=2000, metavar="CHARACTERS")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args()
    pieces = cut("".join(file.read_text(encoding="utf-8") for file in args.files), args.piece)
    print(f"{'options':26}  tokens  perplexity  against the first")
    first = None
    for variant in ["", *args.variant]:
        with (
            serving(args.model, *shlex.split(variant)) as (url, name),
            httpx.Client(base_url=url, timeout=None) as client,
        ):
            value, count = perplexity(client, name, pieces)
        first = value if first is None else first
        print(f"{variant:26}  {count:6}  {value:10.4f}  {value / first - 1:+.2%}", flush=True)


if __name__ == "__main__":
    main()
