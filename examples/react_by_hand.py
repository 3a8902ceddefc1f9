"""ReAct by hand: the prompt of the Qwen repository, stop strings, and no tool calling at all.

    pip install openai
    python examples/react_by_hand.py

Needs a running server: `make serve`. The model writes Thought, Action and Action Input; there
"Observation:" stops it, we write down what the tool says, and it goes on behind that.
"""

import argparse
import json
import re

from openai import OpenAI

QUESTION = "What is the weather in Paris?"
MAX_ROUNDS = 3

# Source: examples/react_prompt.md in https://github.com/QwenLM/Qwen
PROMPT = """\
Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {question}
"""
TOOL = (
    "{name}: Call this tool to interact with the {name} API. What is the {name} API useful for? "
    "{description} Parameters: {parameters} Format the arguments as a JSON object."
)
ACTION = re.compile(r"Action:\s*(\w+).*?Action Input:\s*(.*)", re.DOTALL)


def get_weather(city: str) -> str:
    return f"In {city} it is 31 degrees Celsius and sunny."


def get_population(city: str) -> str:
    return f"{city} has 2,102,650 inhabitants."


TOOLS = {
    "get_weather": (get_weather, "The weather in a city right now."),
    "get_population": (get_population, "How many people live in a city."),
}


def first_prompt(question: str) -> str:
    tools = [
        TOOL.format(name=name, description=description, parameters='{"city": "the name of a city"}')
        for name, (_, description) in TOOLS.items()
    ]
    return PROMPT.format(tools="\n\n".join(tools), names=",".join(TOOLS), question=question)


def observe(name: str, arguments: str) -> str:
    """What a tool says; a mistake is told to the model, which may do better next time."""
    try:
        function, _ = TOOLS[name]
        return function(**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as exc:
        return f"error: {exc!r}"


def think(client: OpenAI, model: str, prompt: str, written: str) -> str:
    """What the model writes up to the next observation, which is not its own to write."""
    reply = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": written},
        ],
        stop=["Observation:"],
        temperature=0,
        max_tokens=100,
        # not OpenAI's: the model goes on with its last message and begins no new one
        extra_body={"add_generation_prompt": False, "continue_final_message": True},
    )
    return reply.choices[0].message.content or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    options = parser.parse_args()

    client = OpenAI(base_url=options.base_url, api_key="none")
    model = options.model or client.models.list().data[0].id
    print(f"Question for {model}: {QUESTION}")
    prompt, written = first_prompt(QUESTION), "Thought:"
    print(written, end="")
    for _ in range(MAX_ROUNDS):
        text = think(client, model, prompt, written)
        action = ACTION.search(text)
        if action is None or "Final Answer:" in text[: action.start()]:
            print(text.rstrip())
            break
        observed = f"Observation: {observe(action[1], action[2].strip())}\nThought:"
        print(text + observed, end="")
        written += text + observed
    else:
        print()


if __name__ == "__main__":
    main()
