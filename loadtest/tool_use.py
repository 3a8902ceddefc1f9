"""How well a served model uses tools: `python -m loadtest.tool_use --url http://127.0.0.1:8000`.

Asks a running server every case of tool_use_cases.json at temperature 0 and prints a table, all
cases and then each category, with these columns:

- selection: cases in which exactly the expected tools were called, in text-only cases none
- arguments: of the expected calls whose tool was called, those with the right arguments
- false calls: of the cases that need an answer in text, those in which something was called
- valid arguments: of all calls, those of an offered tool whose arguments satisfy its schema
- errors: requests without an answer; such a case is not selected right, and counts nowhere else

Needs jsonschema, of the dev dependencies. The scoring is in loadtest/tool_use_score.py.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec

from loadtest.tool_use_score import Answer, Call, Case, Category, JsonObject, rows, score

_TIMEOUT_S = 600.0  # a small machine may have a queue of long prompts
_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class CaseFile:
    """tool_use_cases.json. `tools` are as OpenAI has them; the cases name those they offer."""

    tools: list[JsonObject]
    cases: list[Case]

    @property
    def tools_by_name(self) -> dict[str, JsonObject]:
        return {tool["function"]["name"]: tool for tool in self.tools}

    @property
    def schemas(self) -> dict[str, JsonObject]:
        return {name: tool["function"]["parameters"] for name, tool in self.tools_by_name.items()}


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class _ToolCall(msgspec.Struct, frozen=True):
    function: _Function


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None


class _Reply(msgspec.Struct, frozen=True):
    """What is read of a chat completion."""

    choices: tuple[_Choice]


def shipped() -> CaseFile:
    """The cases that come with this module."""
    raw = files("loadtest").joinpath("tool_use_cases.json").read_bytes()
    return msgspec.json.decode(raw, type=CaseFile)


def chosen(cases: Sequence[Case], categories: Sequence[str], limit: int | None) -> list[Case]:
    """Those of the categories, or all if none is given: one of each in turn, up to `limit`."""
    groups = [
        [case for case in cases if case.category == category]
        for category in categories or get_args(Category)
    ]
    return [case for turn in zip_longest(*groups) for case in turn if case is not None][:limit]


async def ask(client: httpx.AsyncClient, body: JsonObject) -> Answer:
    """One chat completion; what goes wrong is told in the answer."""
    try:
        response = await client.post("/v1/chat/completions", json=body)
    except httpx.RequestError as exc:
        return Answer(error=f"{type(exc).__name__}: {exc}")
    if response.status_code != httpx.codes.OK:
        return Answer(error=f"{response.status_code}: {response.text}")
    try:
        choice = msgspec.json.decode(response.content, type=_Reply).choices[0]
    except msgspec.DecodeError as exc:
        return Answer(error=f"not a chat completion: {exc}")
    calls = [call.function for call in choice.message.tool_calls or ()]
    return Answer(
        content=choice.message.content,
        calls=tuple(Call(call.name, call.arguments) for call in calls),
        finish_reason=choice.finish_reason,
    )


async def ask_all(
    client: httpx.AsyncClient, bodies: Sequence[JsonObject], concurrency: int
) -> list[Answer]:
    """The answers in the order of the bodies, `concurrency` requests at a time."""
    slots = asyncio.Semaphore(concurrency)

    async def one(body: JsonObject) -> Answer:
        async with slots:
            return await ask(client, body)

    return await asyncio.gather(*[one(body) for body in bodies])


async def served_name(client: httpx.AsyncClient) -> str:
    """The first name the server has for its model. Raises httpx.HTTPError."""
    response = await client.get("/v1/models")
    response.raise_for_status()
    name: str = response.json()["data"][0]["id"]
    return name


async def run(
    url: str, file: CaseFile, cases: Sequence[Case], extra: JsonObject, concurrency: int
) -> tuple[str, list[Answer]]:
    """The model's name and its answer to each of the cases; `extra` is added to every body."""
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        model = await served_name(client)
        tools = file.tools_by_name
        bodies = [
            {
                "model": model,
                "messages": case.messages,
                "tools": [tools[name] for name in case.tools],
                "temperature": 0,
                "max_tokens": _MAX_TOKENS,
                **extra,
            }
            for case in cases
        ]
        return model, await ask_all(client, bodies, concurrency)


def _json_object(text: str) -> JsonObject:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise argparse.ArgumentTypeError(f"not a JSON object: {exc}") from exc


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"not positive: {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loadtest.tool_use",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="of the server, without /v1")
    parser.add_argument("--label", help="first column of the table (default: the model's name)")
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="cases, of each category in turn"
    )
    parser.add_argument(
        "--category",
        choices=get_args(Category),
        action="append",
        default=[],
        help="only this one; may be repeated",
    )
    parser.add_argument("--concurrency", type=_positive, default=4, help="requests at a time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="every answer, as JSON")
    parser.add_argument(
        "--body",
        type=_json_object,
        default={},
        metavar="JSON",
        help="""more fields of each request, as '{"reasoning_effort": "none"}'""",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parser().parse_args(arguments)
    file = shipped()
    cases = chosen(file.cases, args.category, args.limit)
    try:
        model, answers = asyncio.run(run(args.url, file, cases, args.body, args.concurrency))
    except httpx.HTTPError as exc:
        sys.exit(f"error: {args.url}/v1/models: {exc}")
    asked = list(zip(cases, answers, strict=True))
    scores = [score(case, file.schemas, answer) for case, answer in asked]
    categories = [case.category for case in cases]
    print(*rows(args.label or model, list(zip(categories, scores, strict=True))), sep="\n")
    for case, answer in asked:
        if answer.error is not None:
            print(f"error: {case.id}: {answer.error}")
    if args.output is not None:
        told = [
            {"case": case, "answer": answer, "score": one}
            for (case, answer), one in zip(asked, scores, strict=True)
        ]
        encoded = msgspec.json.encode({"model": model, "body": args.body, "answers": told})
        args.output.write_bytes(msgspec.json.format(encoded) + b"\n")


if __name__ == "__main__":
    main()
