"""Function calling with the openai SDK: the model names tools, we run them, it answers.

    pip install openai
    python examples/function_calling.py

Needs a running server: `make serve`. Every round is streamed. The first one has to call a tool, so
that even the tiny default model does; whether its answer is any good is another matter.
"""

import argparse
import json
from collections.abc import Iterable
from typing import Literal

from openai import OpenAI, Stream
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionMessageParam,
)

QUESTION = "What is the weather in Paris?"


def get_weather(city: str) -> str:
    return {"Paris": "31 °C and sunny", "Rome": "17 °C and rain"}.get(city, "unknown")


def get_population(city: str) -> str:
    return {"Paris": "2,102,650", "Rome": "2,746,984"}.get(city, "unknown")


FUNCTIONS = {"get_weather": get_weather, "get_population": get_population}


def tool(name: str, description: str) -> ChatCompletionFunctionToolParam:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    tool("get_weather", "The weather in a city right now"),
    tool("get_population", "How many people live in a city"),
]


def run(call: ChatCompletionMessageFunctionToolCallParam) -> str:
    """The result of a call; a mistake is told to the model, which may do better next time."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    print(f"The model calls {name}({arguments})")
    try:
        result = FUNCTIONS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as exc:
        result = f"error: {exc!r}"
    print(f"  and gets: {result}")
    return result


def read(
    stream: Stream[ChatCompletionChunk],
) -> tuple[str, list[ChatCompletionMessageFunctionToolCallParam]]:
    """Print the text as it comes; put the calls together out of their pieces."""
    text = ""
    calls: dict[int, ChatCompletionMessageFunctionToolCallParam] = {}
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                print(choice.delta.content, end="", flush=True)
                text += choice.delta.content
            for piece in choice.delta.tool_calls or []:
                function = piece.function
                if piece.id and function and function.name:  # a call begins
                    calls[piece.index] = {
                        "id": piece.id,
                        "type": "function",
                        "function": {"name": function.name, "arguments": ""},
                    }
                if function and function.arguments:
                    calls[piece.index]["function"]["arguments"] += function.arguments
    if text:
        print()
    return text, list(calls.values())


def answer(client: OpenAI, model: str, messages: list[ChatCompletionMessageParam]) -> None:
    """The last round must not call a tool, so that there is an answer."""
    choices: list[Literal["required", "auto", "none"]] = ["required", "auto", "none"]
    for tool_choice in choices:
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            tool_choice=tool_choice,
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        text, calls = read(stream)
        if calls:
            messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
            messages += results(calls)
        elif text:
            return


def results(
    calls: Iterable[ChatCompletionMessageFunctionToolCallParam],
) -> list[ChatCompletionMessageParam]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": run(call)} for call in calls]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    options = parser.parse_args()

    client = OpenAI(base_url=options.base_url, api_key="none")
    model = options.model or client.models.list().data[0].id
    print(f"Question for {model}: {QUESTION}")
    answer(client, model, [{"role": "user", "content": QUESTION}])


if __name__ == "__main__":
    main()
