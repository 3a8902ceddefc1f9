"""A LangChain agent with two tools, and its steps as they happen.

    pip install langchain langchain-openai
    python examples/langchain_agent.py

Needs a running server: `make serve`. The agent decides by itself whether it calls a tool; the tiny
default model may rather make an answer up.
"""

import argparse

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain.messages import AIMessage, HumanMessage, ToolMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import SecretStr

QUESTION = "What is the weather in Paris?"
MAX_ROUNDS = 3


@tool
def get_weather(city: str) -> str:
    """The weather in a city right now."""
    return f"In {city} it is 31 degrees Celsius and sunny."


@tool
def get_population(city: str) -> str:
    """How many people live in a city."""
    return f"{city} has 2,102,650 inhabitants."


def show(message: object) -> None:
    """Print what one step of the agent brought."""
    if isinstance(message, ToolMessage):
        print(f"  and gets: {message.text}")
    elif isinstance(message, AIMessage):
        for call in message.tool_calls:
            print(f"The model calls {call['name']}({call['args']})")
        if message.text:
            print(f"Answer: {message.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    options = parser.parse_args()

    name = options.model
    if name is None:
        name = OpenAI(base_url=options.base_url, api_key="none").models.list().data[0].id
    model = ChatOpenAI(
        model=name,
        base_url=options.base_url,
        api_key=SecretStr("none"),
        temperature=0,
        max_completion_tokens=60,
    )
    agent = create_agent(
        model,
        [get_weather, get_population],
        system_prompt="Call a tool for facts. When you have its result, answer in one sentence.",
        middleware=[ModelCallLimitMiddleware(run_limit=MAX_ROUNDS)],
    )
    print(f"Question for {name}: {QUESTION}")
    for step in agent.stream({"messages": [HumanMessage(QUESTION)]}, stream_mode="updates"):
        for update in step.values():
            for message in (update or {}).get("messages", []):
                show(message)


if __name__ == "__main__":
    main()
