"""What speculation gains: `python -m engine.bench_speculation --model PATH [--draft-model PATH]`.

The same sequences with and without it, by turns, on one engine: answers that repeat their prompt,
and free answers, which have little to look up and must not become slower. No queue and no server.
A prompt's tokens are the longest that fit, since the engine has no tokenizer.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import msgspec

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.core import Engine
from engine.grammar_closing import Spelling
from engine.messages import EngineRequest, SamplingParams, TokenEvent
from engine.process import set_thread_policy
from engine.speculation.speculator import Speculator
from engine.token_bytes import TokenBytes, read_token_bytes

_TEXT = """\
The town library opens at nine in the morning and closes at six in the evening, except on Thursday,
when it stays open until eight. Members can borrow up to ten books at a time for three weeks, and
renew each of them twice unless somebody else is waiting. Films and music are lent for one week. A
book that comes back late costs twenty cents a day, but never more than five euros. Children under
the age of twelve pay nothing. The reading room on the first floor has forty seats, a printer and a
scanner; a page in black costs ten cents and a page in colour thirty. Groups can use the small hall
for lectures if they ask two weeks ahead. Questions are answered at the desk near the entrance, by
telephone between ten and four, or by mail within two working days."""
_CODE = """\
def read_table(path, separator=","):
    rows = []
    with open(path) as file:
        names = file.readline().rstrip("\\n").split(separator)
        for line in file:
            values = line.rstrip("\\n").split(separator)
            if len(values) != len(names):
                raise ValueError(f"{path}: {len(values)} values for {len(names)} names")
            rows.append(dict(zip(names, values)))
    return rows


def write_table(path, rows, separator=","):
    names = list(rows[0])
    with open(path, "w") as file:
        file.write(separator.join(names) + "\\n")
        for row in rows:
            file.write(separator.join(str(row[name]) for name in names) + "\\n")
"""
_QUESTIONS = {
    "rewriting": (
        f"Write this text out again in full and change only the opening hours to ten.\n\n{_TEXT}",
        f"Rename rows to records in this code. Answer with the whole code.\n\n{_CODE}",
        f"Repeat the following text word for word.\n\n{_TEXT}",
        f"Write this code out again with a docstring in each function.\n\n{_CODE}",
    ),
    "free": (
        "Tell me a story about a lighthouse keeper who finds a letter.",
        "Why is the sky blue, and why is it red in the evening?",
        "What should I think of before I move to another country?",
        "How did people find their way at sea before there were maps?",
    ),
}
_SAMPLING = {
    "greedy": SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0),
    "sampled": SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.7, top_p=0.8, top_k=20),
}


def measure(
    engine: Engine, prompts: list[list[int]], sampling: SamplingParams
) -> tuple[float, list[list[int]]]:
    """Output tokens a second from the first token of all on, and the outputs."""
    for i, prompt in enumerate(prompts):
        seeded = msgspec.structs.replace(sampling, seed=i)
        engine.add(EngineRequest(id=f"{i}", prompt_token_ids=prompt, sampling=seeded))
    outputs: list[list[int]] = [[] for _ in prompts]
    started, num_before = 0.0, 0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                outputs[int(event.id)] += event.token_ids
        if not started and all(outputs):
            started, num_before = time.perf_counter(), sum(map(len, outputs))
    num_tokens = sum(map(len, outputs)) - num_before
    return num_tokens / (time.perf_counter() - started), outputs


def compare(
    engine: Engine,
    speculator: Speculator,
    prompts: list[list[int]],
    sampling: SamplingParams,
    num_rounds: int,
) -> dict[str, float]:
    """Medians of runs by turns. The first run of each is not counted: nothing is learned yet."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    ratios: list[float] = []
    drafted, accepted = speculator.num_draft_tokens, speculator.num_accepted_tokens
    is_same = True
    for number in range(num_rounds + 1):
        outputs = {}
        for is_on in (False, True):
            engine.speculator = speculator if is_on else None
            speed, outputs[is_on] = measure(engine, prompts, sampling)
            if number:
                speeds[is_on].append(speed)
        is_same = is_same and outputs[False] == outputs[True]
        if number:
            ratios.append(speeds[True][-1] / speeds[False][-1])
    drafted = speculator.num_draft_tokens - drafted
    accepted = speculator.num_accepted_tokens - accepted
    return {
        "off": statistics.median(speeds[False]),
        "on": statistics.median(speeds[True]),
        "ratio": statistics.median(ratios),
        "accepted": accepted / drafted if drafted else 0.0,
        "same": float(is_same),
    }


class Prompts:
    """Questions as a chat model is asked them, where it has the usual markers."""

    def __init__(self, token_bytes: TokenBytes, vocab_size: int) -> None:
        self._spelling = Spelling(token_bytes, vocab_size)
        self._markers = {
            token_bytes.tokens[i].decode(): i for i in token_bytes.special_ids if i < vocab_size
        }

    def of(self, kind: str, count: int) -> list[list[int]]:
        """So many of a kind; each begins with its number, so that none shares another's blocks."""
        questions = _QUESTIONS[kind]
        return [
            list(self._tokens(f"user\n{i + 1}. {questions[i % len(questions)]}"))
            for i in range(count)
        ]

    def _tokens(self, text: str) -> Iterator[int]:
        opening, closing = (self._markers.get(f"<|im_{end}|>") for end in ("start", "end"))
        if opening is None or closing is None:
            yield from self._spell(text + "\n\n")
            return
        yield opening
        yield from self._spell(text)
        yield closing
        yield from self._spell("\n")
        yield opening
        yield from self._spell("assistant\n")

    def _spell(self, text: str) -> list[int]:
        ids = self._spelling(text.encode())
        if ids is None:
            raise SystemExit("The model has no tokens for plain text.")
        return ids


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="engine.bench_speculation", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--draft-model", help="the same, of a smaller model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num-tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--num-drafts", type=int, default=8, help="at most, in a step")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    set_thread_policy()
    from engine.load import load_engine  # imports torch, which reads the policy

    config = {
        "model": args.model,
        "dtype": args.dtype,
        "device": args.device,
        "max_num_seqs": max(args.num_seqs),
        "speculation": "ngram" if args.draft_model is None else "auto",
        "draft_model": args.draft_model,
        "num_speculative_tokens": args.num_drafts,
        "enable_prefix_caching": False,
    }
    engine = load_engine(msgspec.convert(config, EngineConfig))
    speculator = engine.speculator
    assert speculator is not None
    prompts = Prompts(read_token_bytes(Checkpoint.open(args.model)), engine.info.vocab_size)
    print(f"{engine.info.backend} backend, {engine.info.device}, {engine.info.dtype}")
    print("sequences  answers    sampling  off tok/s  on tok/s  ratio  accepted  same output")
    for num_sequences in args.num_seqs:
        for kind in _QUESTIONS:
            for name, sampling in _SAMPLING.items():
                params = msgspec.structs.replace(sampling, max_tokens=args.num_tokens)
                found = compare(
                    engine, speculator, prompts.of(kind, num_sequences), params, args.rounds
                )
                print(
                    f"{num_sequences:9}  {kind:9}  {name:8}  {found['off']:9.1f}  "
                    f"{found['on']:8.1f}  {found['ratio']:5.2f}  {found['accepted']:8.0%}  "
                    f"{'yes' if found['same'] else 'no'}",
                    flush=True,
                )
    engine.close()


if __name__ == "__main__":
    main()
