"""A Qwen-Agent assistant with a tool of our own.

    pip install qwen-agent soundfile numpy python-dateutil
    python examples/qwen_agent_assistant.py

Needs a running server: `make serve`. Qwen-Agent writes the tools into the prompt and reads the
calls out of the text by itself. The tiny default model may rather make an answer up.
Qwen-Agent leaves an empty folder `workspace` behind.
"""

import argparse
import logging
from typing import Any, ClassVar

from openai import OpenAI
from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool, register_tool

QUESTION = "What is the weather in Paris?"
MAX_CALLS = 3
# A small model leaves the markers out that Qwen-Agent looks for, so the server holds it to a call
# with them or a sentence (docs/structured_output.md). A larger one of Qwen's does without.
ANSWER = (
    r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "[A-Za-z ]{1,20}"\}\}\n'
    r"</tool_call>|The [^{}<\n]{5,150}\."
)


@register_tool("get_weather")
class GetWeather(BaseTool):
    """Qwen-Agent finds it by its name."""

    description = "The weather in a city right now."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The name of the city"}},
        "required": ["city"],
    }

    def call(self, params: str | dict[str, Any], **kwargs: Any) -> str:
        self._verify_json_format_args(params)
        return "31 degrees Celsius and sunny"


def show(message: dict[str, Any]) -> None:
    if message["role"] == "function":
        print(f"  and gets: {message['content']}")
    elif "function_call" in message:
        call = message["function_call"]
        print(f"The model calls {call['name']}({call['arguments']})")
    else:
        print(f"Answer: {message['content']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    options = parser.parse_args()

    logging.getLogger("qwen_agent_logger").setLevel(logging.WARNING)
    client = OpenAI(base_url=options.base_url, api_key="none")
    model = options.model or client.models.list().data[0].id
    assistant = Assistant(
        function_list=["get_weather"],
        llm={
            "model": model,
            "model_server": options.base_url,
            "api_key": "none",
            "generate_cfg": {
                "temperature": 0,
                "max_tokens": 60,
                "extra_body": {"structured_outputs": {"regex": ANSWER}},
            },
        },
    )
    print(f"Question for {model}: {QUESTION}")
    messages: list[dict[str, Any]] = []
    for messages in assistant.run([{"role": "user", "content": QUESTION}]):
        if sum(message["role"] == "function" for message in messages) == MAX_CALLS:
            break
    for message in messages:
        show(message)


if __name__ == "__main__":
    main()
