"""The scenarios of function_call_examples.py of QwenLM/Qwen with the official SDK, over a socket.

Each is asked for as one reply and as a stream, which the SDK's own helper folds; in ReAct, as the
first Qwen chat models write it, and in Hermes, as Qwen2.5's own template has it. What the engine
gets to see is compared with the formats as they are published, what comes back with OpenAI's own
shapes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from engine.fake import FakeEngine, Script
from engine.messages import EngineRequest, Event, Finished, TokenEvent
from protocol.qwen_format import QwenFormat
from server.config import ServerConfig
from server.tool_support import tool_support
from tests.e2e.running_server import MODEL, RunningServer, build_state, serve
from tests.server.tool_app import said

pytestmark = pytest.mark.real_model

SEARCH_QUERY = {"type": "string", "description": "搜索关键词或短语"}
PROMPT = {"type": "string", "description": "英文关键词，描述了希望图像具有什么内容"}


def closed(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# As the examples have them: functions in Qwen's own style ...
QWEN_FUNCTIONS: list[dict[str, Any]] = [
    {
        "name_for_human": "谷歌搜索",
        "name_for_model": "google_search",
        "description_for_model": "谷歌搜索是一个通用搜索引擎，可用于访问互联网。"
        " Format the arguments as a JSON object.",
        "parameters": [
            {
                "name": "search_query",
                "description": "搜索关键词或短语",
                "required": True,
                "schema": {"type": "string"},
            }
        ],
    },
    {
        "name_for_human": "文生图",
        "name_for_model": "image_gen",
        "description_for_model": "文生图是一个AI绘画（图像生成）服务。",
        "parameters": [
            {
                "name": "prompt",
                "description": "英文关键词，描述了希望图像具有什么内容",
                "required": True,
                "schema": {"type": "string"},
            }
        ],
    },
]
# ... and the same as OpenAI's tools, strict because the SDK's helper takes no others.
DESCRIBED = {one["name_for_model"]: one["description_for_model"] for one in QWEN_FUNCTIONS}
SCHEMAS = {"google_search": closed(search_query=SEARCH_QUERY), "image_gen": closed(prompt=PROMPT)}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": DESCRIBED[name],
            "parameters": SCHEMAS[name],
            "strict": True,
        },
    }
    for name in SCHEMAS
]
WEATHER: dict[str, Any] = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": "The city and state, e.g. San Francisco, CA",
            },
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
}


@dataclass
class Served:
    """A server of a model, and how that model writes."""

    style: str
    running: RunningServer
    client: OpenAI
    engine: FakeEngine

    def call(self, thought: str, *calls: tuple[str, str]) -> str:
        if self.style == "hermes":
            written = [
                f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
                for name, arguments in calls
            ]
            return "\n".join([thought, *written])
        actions = [f"Action: {name}\nAction Input: {arguments}" for name, arguments in calls]
        # what a model makes up behind it is never to be seen
        return "\n".join([f"Thought: {thought}", *actions, "Observation: 42\nThought: done"])

    def answer(self, text: str) -> str:
        if self.style == "hermes":
            return text
        return f"Thought: I now know the final answer.\nFinal Answer: {text}"

    def script(self, text: str) -> Script:
        """One token an event; behind a prompt that ends with "Thought:" the model goes on."""
        tokenizer = self.running.state.model.tokenizer

        def script(request: EngineRequest) -> Iterator[Event | float]:
            prompt = tokenizer.decode(request.prompt_token_ids, skip_special=False)
            rest = text.removeprefix("Thought:") if prompt.endswith("\nThought:") else text
            token_ids = tokenizer.encode(rest, parse_special=True)
            for token_id in token_ids:
                yield TokenEvent(request.id, [token_id])
                yield 0
            yield Finished(request.id, "stop", num_output_tokens=len(token_ids) + 1)

        return script


@pytest.fixture(scope="module")
def react(smollm2_path: Path) -> Iterator[Served]:
    """SmolLM2's tokens in the prompt format of the first Qwen models."""
    engine = FakeEngine()
    state = build_state(smollm2_path, engine, ServerConfig())
    prompt_format = QwenFormat(state.model.tokenizer, 6144)
    tools = tool_support(prompt_format, None, None)
    model = replace(state.model, chat_template=prompt_format, tools=tools)
    with serve(replace(state, model=model)) as running, sdk(running) as client:
        yield Served("react", running, client, engine)


@pytest.fixture(scope="module")
def hermes(qwen_coder_path: Path) -> Iterator[Served]:
    """Qwen2.5's tokens and its own chat template."""
    engine = FakeEngine()
    state = build_state(qwen_coder_path, engine, ServerConfig())
    with serve(state) as running, sdk(running) as client:
        yield Served("hermes", running, client, engine)


def sdk(running: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(params=["react", "hermes"])
def served(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(request.param)
    return found


@dataclass
class Talk:
    """A conversation: what is asked, and each answer is sent back as it came."""

    served: Served
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)

    def ask(self, says: str) -> Any:
        """The choice of an answer, whole; the stream of the same folds into the same."""
        engine, completions = self.served.engine, self.served.client.chat.completions
        engine.requests.clear()
        engine.script = self.served.script(says)
        body: Any = {"model": MODEL, "messages": self.messages, **self.fields}
        if self.served.style == "hermes":
            body["model"] = self.served.running.state.model.names[0]
        (choice,) = completions.create(**body).choices
        with completions.stream(**body) as stream:
            (streamed,) = stream.get_final_completion().choices
        assert said(streamed.model_dump()) == said(choice.model_dump())
        assert streamed.message.role == choice.message.role == "assistant"
        assert streamed.message.refusal is choice.message.refusal is None
        whole, in_stream = (request.prompt_token_ids for request in engine.requests)
        assert whole == in_stream
        self.messages.append(choice.message.to_dict())
        return choice

    def user(self, text: str, says: str) -> Any:
        self.messages.append({"role": "user", "content": text})
        return self.ask(says)

    def result(self, content: str, says: str) -> Any:
        """Answer the calls of the last message, in the style that they have."""
        last = self.messages[-1]
        for call in last.get("tool_calls", ()):
            back = {"role": "tool", "tool_call_id": call["id"], "content": content}
            self.messages.append(back)
        if "function_call" in last:
            name = last["function_call"]["name"]
            self.messages.append({"role": "function", "name": name, "content": content})
        return self.ask(says)

    @property
    def prompt(self) -> str:
        ids = self.served.engine.requests[-1].prompt_token_ids
        return self.served.running.state.model.tokenizer.decode(ids, skip_special=False)


STYLES = pytest.mark.parametrize(
    "fields", [{"functions": QWEN_FUNCTIONS}, {"tools": TOOLS}], ids=["functions", "tools"]
)


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    """Name and arguments, which have to be JSON."""
    message = choice.message
    functions = [call.function for call in message.tool_calls or ()]
    if message.function_call is not None:
        functions.append(message.function_call)
    return [(one.name, json.loads(one.arguments)) for one in functions]


def expect_call(choice: Any, fields: dict[str, Any], name: str, **arguments: str) -> None:
    assert calls_of(choice) == [(name, arguments)]
    is_legacy = "functions" in fields
    assert choice.finish_reason == ("function_call" if is_legacy else "tool_calls")
    assert (choice.message.function_call is not None) is is_legacy


def expect_text(choice: Any, text: str) -> None:
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
    assert calls_of(choice) == []


def chatml(*turns: tuple[str, str], begun: str | None = None) -> str:
    """The prompt; `begun`: the assistant's text that the model goes on with."""
    blocks = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
    return "".join(blocks) + "<|im_start|>assistant\n" + (begun or "")


# facts of openai_api.py: TOOL_DESC and REACT_INSTRUCTION, word for word
REACT_INSTRUCTION = """Answer the following questions as best you can. You have access to the \
following APIs:

{tools_text}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{tools_name_text}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
TOOL_DESC = (
    "{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? "
    "{description} Parameters: {parameters}"
)
DEFAULT_SYSTEM = ("system", "You are a helpful assistant.")

HELLO, HELLO_BACK = "（请不要调用工具）\n\n你好", "你好！很高兴见到你。有什么我可以帮忙的吗？"
WHO, WIFE = "搜索一下谁是周杰伦", "搜索一下他老婆是谁"
CAT = "画个可爱的小猫，最好是黑猫"
T_WHO, A_WHO = "我应该使用Google搜索查找相关信息。", '{"search_query": "周杰伦"}'
R_WHO = "Jay Chou is a Taiwanese singer, songwriter, record producer, rapper, actor."
S_WHO = "周杰伦（Jay Chou）是一位来自台湾的歌手。"
T_WIFE, A_WIFE = "我应该使用Google搜索。", '{"search_query": "周杰伦 老婆"}'
R_WIFE, S_WIFE = "Hannah Quinlivan", "周杰伦的老婆是Hannah Quinlivan。"
A_CAT = '{"prompt": "cute black cat"}'


def react_question(text: str, is_legacy: bool) -> tuple[str, str]:
    human = {"google_search": "谷歌搜索", "image_gen": "文生图"}
    qwen_style: dict[str, Any] = {
        "google_search": {"search_query": {"description": "搜索关键词或短语", "type": "string"}},
        "image_gen": {"prompt": {"description": PROMPT["description"], "type": "string"}},
    }
    described = [
        TOOL_DESC.format(
            name=name,
            human=human[name] if is_legacy else name,
            description=DESCRIBED[name],
            parameters=json.dumps(
                {
                    "type": "object",
                    "properties": qwen_style[name],
                    "required": list(qwen_style[name]),
                }
                if is_legacy
                else SCHEMAS[name],
                ensure_ascii=False,
            ),
        )
        for name in SCHEMAS
    ]
    told = REACT_INSTRUCTION.format(
        tools_text="\n\n".join(described), tools_name_text="google_search, image_gen"
    )
    return "user", f"{told}\n\nQuestion: {text}"


def acted(thought: str, name: str, arguments: str, result: str) -> str:
    return f"Thought: {thought}\nAction: {name}\nAction Input: {arguments}\nObservation: {result}\n"


def answered(text: str) -> str:
    return f"Thought: I now know the final answer.\nFinal Answer: {text}"


@STYLES
def test_search_and_draw(served: Served, fields: dict[str, Any]) -> None:
    """No call, a call and its result, a second one that needs the first, another tool."""
    talk = Talk(served, fields)
    expect_text(talk.user(HELLO, served.answer(HELLO_BACK)), HELLO_BACK)
    choice = talk.user(WHO, served.call(T_WHO, ("google_search", A_WHO)))
    expect_call(choice, fields, "google_search", search_query="周杰伦")
    assert choice.message.content == T_WHO
    expect_text(talk.result(R_WHO, served.answer(S_WHO)), S_WHO)
    choice = talk.user(WIFE, served.call(T_WIFE, ("google_search", A_WIFE)))
    expect_call(choice, fields, "google_search", search_query="周杰伦 老婆")
    expect_text(talk.result(R_WIFE, served.answer(S_WIFE)), S_WIFE)
    choice = talk.user(CAT, served.call("我应该使用文生图。", ("image_gen", A_CAT)))
    expect_call(choice, fields, "image_gen", prompt="cute black cat")


@STYLES
def test_prompts_of_react(react: Served, fields: dict[str, Any]) -> None:
    """The instruction is in the user's message of the last answered turn, as openai_api.py has it;
    behind a result the model goes on with its thought.
    """
    is_legacy = "functions" in fields
    talk = Talk(react, fields)
    talk.user(HELLO, react.answer(HELLO_BACK))
    assert talk.prompt == chatml(DEFAULT_SYSTEM, react_question(HELLO, is_legacy))
    talk.user(WHO, react.call(T_WHO, ("google_search", A_WHO)))
    first = [("user", HELLO), ("assistant", answered(HELLO_BACK))]
    told_first = [react_question(HELLO, is_legacy), first[1]]
    assert talk.prompt == chatml(DEFAULT_SYSTEM, *told_first, ("user", WHO))
    talk.result(R_WHO, react.answer(S_WHO))
    searched = acted(T_WHO, "google_search", A_WHO, R_WHO)
    told_who = react_question(WHO, is_legacy)
    assert talk.prompt == chatml(DEFAULT_SYSTEM, *first, told_who, begun=f"{searched}Thought:")
    talk.user(WIFE, react.call(T_WIFE, ("google_search", A_WIFE)))
    full = ("assistant", searched + answered(S_WHO))
    assert talk.prompt == chatml(DEFAULT_SYSTEM, *first, told_who, full, ("user", WIFE))
    talk.result(R_WIFE, react.answer(S_WIFE))
    begun = acted(T_WIFE, "google_search", A_WIFE, R_WIFE) + "Thought:"
    turns = [*first, ("user", WHO), full, react_question(WIFE, is_legacy)]
    assert talk.prompt == chatml(DEFAULT_SYSTEM, *turns, begun=begun)


def hermes_system(tools: list[dict[str, Any]]) -> tuple[str, str]:
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return "system", (
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def hermes_call(thought: str, name: str, arguments: str) -> tuple[str, str]:
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    return "assistant", f"{thought}\n{call}"


def test_prompts_of_hermes(hermes: Served) -> None:
    told = [
        {
            "type": "function",
            "function": {k: v for k, v in one["function"].items() if k != "strict"},
        }
        for one in TOOLS
    ]
    talk = Talk(hermes, {"tools": TOOLS})
    talk.user(WHO, hermes.call(T_WHO, ("google_search", A_WHO)))
    turns = [hermes_system(told), ("user", WHO)]
    assert talk.prompt == chatml(*turns)
    talk.result(R_WHO, hermes.answer(S_WHO))
    turns.append(hermes_call(T_WHO, "google_search", A_WHO))
    turns.append(("user", f"<tool_response>\n{R_WHO}\n</tool_response>"))
    assert talk.prompt == chatml(*turns)
    talk.user(WIFE, hermes.call(T_WIFE, ("google_search", A_WIFE)))
    assert talk.prompt == chatml(*turns, ("assistant", S_WHO), ("user", WIFE))


def test_plain_chat(served: Served) -> None:
    """Three turns, nothing of tools."""
    talk = Talk(served)
    for question, answer in (
        ("你好", "你好！很高兴为你提供帮助。"),
        ("给我讲一个年轻人奋斗创业最终取得成功的故事。", "从前，\n有一个李明。"),
        ("给这个故事起一个标题", "《奋斗》\nAction: x\nAction Input: {}"),
    ):
        expect_text(talk.user(question, answer), answer)
        assert "Action Input: the input" not in talk.prompt and "<tools>" not in talk.prompt
        assert served.engine.requests[-1].grammar is None


def test_a_question_about_boston(served: Served) -> None:
    """A history as the examples write it: content null beside a function call."""
    arguments = '{"location": "Boston, MA"}'
    history: list[Any] = [
        {"role": "user", "content": "波士顿天气如何？"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_current_weather", "arguments": arguments},
        },
        {
            "role": "function",
            "name": "get_current_weather",
            "content": '{"temperature": "22", "unit": "celsius", "description": "Sunny"}',
        },
    ]
    fields = {"functions": [WEATHER]}
    talk = Talk(served, fields)
    choice = talk.user(
        history[0]["content"], served.call("查一下。", ("get_current_weather", arguments))
    )
    expect_call(choice, fields, "get_current_weather", location="Boston, MA")
    talk = Talk(served, fields, history)
    expect_text(talk.ask(served.answer("波士顿天气晴朗，22度。")), "波士顿天气晴朗，22度。")
    if served.style == "react":
        begun = acted("", "get_current_weather", arguments, history[2]["content"])
        assert talk.prompt.endswith(f"<|im_start|>assistant\n{begun}Thought:")
    else:
        assert f'{{"name": "get_current_weather", "arguments": {arguments}}}' in talk.prompt


def test_parallel_calls(served: Served) -> None:
    strict = {**WEATHER, "parameters": closed(location={"type": "string"}), "strict": True}
    talk = Talk(served, {"tools": [{"type": "function", "function": strict}]})
    cities = [("get_current_weather", f'{{"location": "{city}"}}') for city in ("Boston", "Paris")]
    choice = talk.user("Boston and Paris?", served.call("Both.", *cities))
    assert calls_of(choice) == [(name, json.loads(arguments)) for name, arguments in cities]
    assert choice.finish_reason == "tool_calls"
    assert len({call.id for call in choice.message.tool_calls}) == 2
    expect_text(talk.result("22", served.answer("22 in both.")), "22 in both.")
    assert talk.prompt.index("Boston") < talk.prompt.index("Paris")
    assert talk.prompt.count("22") == 2


def test_a_react_agent_of_the_client(served: Served) -> None:
    """LangChain's ZERO_SHOT_REACT writes its own prompt, without tools: all of it is text."""
    talk = Talk(served, {"stop": ["\nObservation:", "\n\tObservation:"]})
    wanted = "Thought: 我需要使用Arxiv。\nAction: arxiv\nAction Input: 1605.08386"
    choice = talk.user(
        "Answer the following questions as best you can. You have access to the following tools:\n"
        "\narxiv: ...\n\nBegin!\n\nQuestion: 查一下论文1605.08386的信息\nThought:",
        f"{wanted}\nObservation: made up",
    )
    expect_text(choice, wanted)


def test_parsed_arguments_and_events(served: Served) -> None:
    """What the SDK's helper makes of a strict tool's arguments while they come."""
    served.engine.script = served.script(served.call(T_WHO, ("google_search", A_WHO)))
    body: Any = {
        "model": served.running.state.model.names[0],
        "messages": [{"role": "user", "content": WHO}],
        "tools": TOOLS,
    }
    with served.client.chat.completions.stream(**body) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas) == A_WHO
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert (done.name, done.index, done.arguments) == ("google_search", 0, A_WHO)
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == json.loads(A_WHO)
