"""What following a grammar costs: `python -m engine.bench_grammar --model PATH`.

Steps of the same sequences with and without a grammar, by turns: a JSON schema, and tools that need
not be called; and the time from a schema that was never seen to its first mask. No queue and no
server: the rest of a step is the same for all.
"""

import argparse
import json
import statistics
import time
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.core import Engine
from engine.grammar_compiler import Grammars
from engine.messages import EngineRequest, Grammar, SamplingParams
from engine.process import set_thread_policy

_PROMPT_LENGTH = 64
_WARM_UP_STEPS = 5

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "email", "tags", "address"],
    "additionalProperties": False,
}
# so many that no sequence is complete before the last step
_MANY = {"type": "array", "items": PERSON, "minItems": 100}

# text that a call may end, as with tools that need not be called
_OPTIONAL_CALL = f"""\
start: TEXT | found arguments "}}\\n</tool_call>"
found[lazy]: /(?s:.*)<tool_call>/
arguments: %json {json.dumps(PERSON)}
TEXT: /(?s:.*)/
"""


def of_schema(schema: object) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(schema))


def step_ms(engine: Engine, num_sequences: int, num_steps: int, grammar: Grammar | None) -> float:
    """Median of the steps in which each sequence gets one token."""
    for i in range(num_sequences):
        engine.add(
            EngineRequest(
                id=f"{i}",
                prompt_token_ids=[i + 10] * _PROMPT_LENGTH,
                sampling=SamplingParams(max_tokens=num_steps, seed=i, ignore_eos=True),
                grammar=grammar,
            )
        )
    seconds: list[float] = []
    while engine.has_work or engine.is_compiling:
        engine.admit_compiled()
        if engine.has_work:
            started = time.perf_counter()
            num_events = len(engine.step())
            if num_events == num_sequences:
                seconds.append(time.perf_counter() - started)
    if len(seconds) <= _WARM_UP_STEPS:
        raise RuntimeError("the sequences ended before they could be measured")
    return statistics.median(seconds[_WARM_UP_STEPS:]) * 1000


def first_use_ms(grammars: Grammars, number: int) -> float:
    """From a schema that is new to its matcher, the first mask computed."""
    grammar = of_schema({**PERSON, "title": f"Person {number} of {time.time()}"})
    started = time.perf_counter()
    grammars.compile(grammar).result()
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="engine.bench_grammar", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-seqs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=60, help="tokens of each sequence")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    set_thread_policy()
    from engine.load import load_engine  # imports torch, which reads the policy

    config = {"model": args.model, "dtype": args.dtype, "device": args.device}
    config["speculation"] = "off"  # a step is to give each sequence one token
    engine = load_engine(msgspec.convert({**config, "max_num_seqs": args.num_seqs}, EngineConfig))
    assert engine.grammars is not None
    started = time.perf_counter()
    engine.grammars.compile(Grammar(kind="json_object")).result()
    print(f"start of the compiler: {(time.perf_counter() - started) * 1000:.0f} ms")
    uses = [first_use_ms(engine.grammars, i) for i in range(20)]
    print(f"first use of a schema: median {statistics.median(uses):.1f} ms, max {max(uses):.1f} ms")
    optional_call = Grammar(kind="lark", text=_OPTIONAL_CALL)
    grammars = {"free": None, "schema": of_schema(_MANY), "tools": optional_call}
    rows: dict[str, list[float]] = {name: [] for name in grammars}
    for _ in range(args.repeat):
        for name, grammar in grammars.items():
            rows[name].append(step_ms(engine, args.num_seqs, args.num_steps, grammar))
    for name, values in rows.items():
        median = statistics.median(values)
        speed = args.num_seqs / median * 1000
        print(f"{name:6}  {median:7.2f} ms a step  {speed:7.1f} tokens/s  of {min(values):.2f} to "
              f"{max(values):.2f} ms")  # fmt: skip
    for name in ("schema", "tools"):
        ratio = statistics.median(f / s for f, s in zip(rows["free"], rows[name], strict=True))
        print(f"tokens per second with {name}: {ratio:.1%} of free generation")
    engine.close()


if __name__ == "__main__":
    main()
