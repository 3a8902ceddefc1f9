"""What is asked of servers that are compared: seeded, so that every server gets the same.

Prompts are words of which each is one token, with the space before it, in the tokenizers that the
measured models have; the true numbers come back from the server. Every prompt begins with words of
its own, so that no prefix cache holds more of it than a template's first lines, unless the workload
is about that cache.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from loadtest.client import Answer, Endpoint, ask

_TEXT = """
action air animal answer area arm art back bank bed blood board boat body book box boy bridge
brother building call car career case center chance change child church city class college color
company control cost country course court cup data day deal death decade degree design doctor dog
door drug east economy effect energy event eye face fact factor family father field figure film
fire floor food foot force form friend fund future game garden girl glass group growth hair hand
head health heart history home hospital hour house idea image industry issue job kind land
language law leader level life light line list loss love man market material matter meeting member
message metal mind minute money month morning mother movement movie music name nation nature need
news night north number office oil order page paint paper parent part party people person phone
picture piece place plan plant player point police policy power price problem product project
quality question race rate reason record region report result river road role room rule school
science season section sense service side sign silver sister site size skill society song sound
source south space sport stage star state station stock stone store story street student study
subject summer support system table task tax teacher team test thing thought time tool top town
trade tree truth type use value view voice wall war water way week west window winter woman word
work world year
"""
_WORDS = _TEXT.split()

Tag = Literal["", "miss", "hit"]  # of the prefix cache


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `path` follows the API's prefix; `body` lacks only the model's name."""

    path: str
    body: Mapping[str, object]
    num_tokens: int  # of output
    tag: Tag = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """Calls of which `concurrency` are under way at any time, in their order."""

    name: str
    about: str
    concurrency: int
    make: Callable[[random.Random], Iterator[Call]]

    def calls(self, seed: int, round_number: int) -> list[Call]:
        """Those of one round: the same for every server, and new in every round."""
        return list(self.make(random.Random(f"{seed} {self.name} {round_number}")))


async def run(
    endpoint: Endpoint, model: str, calls: list[Call], concurrency: int, timeout_s: float = 900.0
) -> list[Answer]:
    """Make all calls, `concurrency` at a time; the answers are in the order of the calls."""
    answers: list[Answer | None] = [None] * len(calls)
    remaining = iter(range(len(calls)))

    async def work() -> None:
        for i in remaining:
            call = calls[i]
            body = {"model": model, **call.body}
            answers[i] = await ask(
                endpoint, call.path, body, num_tokens=call.num_tokens, timeout_s=timeout_s
            )

    await asyncio.gather(*[work() for _ in range(concurrency)])
    return [answer for answer in answers if answer is not None]


def words(generator: random.Random, number: int) -> str:
    """So many words, and about as many tokens."""
    return " ".join(generator.choices(_WORDS, k=number))


def chat(*messages: tuple[str, str], num_tokens: int, tag: Tag = "") -> Call:
    """A greedy chat answer of exactly `num_tokens`; messages are (role, content)."""
    body = {"messages": [{"role": role, "content": content} for role, content in messages]}
    return Call("/chat/completions", {**body, **_exactly(num_tokens)}, num_tokens, tag)


def completion(prompt: str, *, num_tokens: int) -> Call:
    """A greedy continuation of exactly `num_tokens`, without a chat template."""
    return Call("/completions", {"prompt": prompt, **_exactly(num_tokens)}, num_tokens)


def _exactly(num_tokens: int) -> dict[str, object]:
    return {
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def decode(num_streams: int, num_tokens: int, num_prompt_tokens: int = 32) -> Workload:
    """Streams that all begin at once and run to the same length."""

    def make(generator: random.Random) -> Iterator[Call]:
        for _ in range(num_streams):
            yield chat(("user", words(generator, num_prompt_tokens)), num_tokens=num_tokens)

    about = f"{num_streams} at once, {num_prompt_tokens} words of prompt, {num_tokens} tokens each"
    return Workload(f"decode-{num_streams}", about, num_streams, make)


def prefill(num_prompt_tokens: int, num_calls: int) -> Workload:
    """Long prompts one after the other, and one token of output."""

    def make(generator: random.Random) -> Iterator[Call]:
        for _ in range(num_calls):
            yield completion(words(generator, num_prompt_tokens), num_tokens=1)

    about = f"{num_calls} prompts of {num_prompt_tokens} words one by one, 1 token each"
    return Workload(f"prefill-{num_prompt_tokens}", about, 1, make)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens, lognormal as those of real conversations are, and cut at both ends."""

    median: float
    sigma: float  # of the natural logarithm
    least: int
    most: int

    def draw(self, generator: random.Random) -> int:
        value = round(self.median * generator.lognormvariate(0, self.sigma))
        return min(max(value, self.least), self.most)


# ShareGPT's shape: a long tail, and prompts of 160 tokens in the mean (arXiv:2309.06180, 6.1).
# Its answers, twice as long, are cut at 256 tokens so that a round ends on two cores.
CHAT_PROMPTS = Lengths(median=75, sigma=1.2, least=4, most=1024)
CHAT_ANSWERS = Lengths(median=110, sigma=0.8, least=8, most=256)


def chats(num_calls: int, concurrency: int) -> Workload:
    """Conversations of mixed lengths; the next begins when one has ended."""

    def make(generator: random.Random) -> Iterator[Call]:
        for _ in range(num_calls):
            prompt = words(generator, CHAT_PROMPTS.draw(generator))
            yield chat(("user", prompt), num_tokens=CHAT_ANSWERS.draw(generator))

    about = f"{num_calls} chats, {concurrency} at a time, lognormal lengths"
    return Workload(f"chats-{concurrency}", about, concurrency, make)


def prefix(num_system_tokens: int, num_prompts: int, num_repeats: int) -> Workload:
    """Each of several system prompts first as a new one, then with other questions after it."""

    def make(generator: random.Random) -> Iterator[Call]:
        for _ in range(num_prompts):
            system = words(generator, num_system_tokens)
            for i in range(1 + num_repeats):
                question = ("user", words(generator, 16))
                yield chat(("system", system), question, num_tokens=8, tag="hit" if i else "miss")

    about = (
        f"{num_prompts} system prompts of {num_system_tokens} words, each new and then "
        f"{num_repeats} times again with other questions, one by one"
    )
    return Workload(f"prefix-{num_system_tokens}", about, 1, make)


WORKLOADS: tuple[Workload, ...] = (
    decode(1, 128),
    decode(8, 96),
    decode(32, 64),
    prefill(512, 4),
    prefill(2048, 2),
    chats(32, 16),
    prefix(1000, 2, 2),
)
