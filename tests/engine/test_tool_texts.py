"""Which answers each format's grammar lets through: texts that models write, and near misses."""

import pytest

from engine.grammar_process import problem_of
from engine.messages import Grammar, Thinking
from protocol.tools.answer_grammar import AnswerRules, CallableTool, UnsupportedSchema
from protocol.tools.calls import Tool
from protocol.tools.formats import FORMATS, ToolFormat
from protocol.tools.schemas import grammar_schema
from tests.engine import grammars
from tests.engine.grammar_walks import SPECIAL, follows
from tests.protocol.tools.schema_cases import SCHEMAS, Schema

GET = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


def tool_of(name: str, schema: Schema, *, strict: bool = False) -> CallableTool:
    tool = Tool(name, "", schema, strict)
    return CallableTool(tool, grammar_schema(tool).schema)


TOOLS = (tool_of("get", GET), tool_of("get_now", {}))


def grammar(
    tool_format: ToolFormat, tools: tuple[CallableTool, ...] = TOOLS, **fields: object
) -> Grammar:
    rules = AnswerRules(tools, **fields)  # type: ignore[arg-type]
    return Grammar(kind="lark", text=FORMATS[tool_format].grammar(rules))


PARIS = '{"city": "Paris", "days": 3}'
HERMES = f'<tool_call>\n{{"name": "get", "arguments": {PARIS}}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "get_now", "arguments": {}}\n</tool_call>'
BARE = f'{{"name": "get", "arguments": {PARIS}}}'
CODER_NOW = "<tool_call>\n<function=get_now>\n</function>\n</tool_call>"
CODER = (
    "<tool_call>\n<function=get>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
GLM = 'get\n ```python\ntool_call(city="Paris", days=3)\n```'
GLM_NOW = "get_now\n ```python\ntool_call()\n```"
LLAMA = f'{{"name": "get", "parameters": {PARIS}}}'
AGENT = f"✿FUNCTION✿: get\n✿ARGS✿: {PARIS}"
AGENT_NOW = "✿FUNCTION✿: get_now\n✿ARGS✿: {}"
REACT = f"Action: get\nAction Input: {PARIS}"

F = ToolFormat


@pytest.mark.parametrize(
    ("tool_format", "text", "expected"),
    [
        (F.HERMES, HERMES, True),
        (F.HERMES, f"{HERMES}\n{HERMES_NOW}", True),
        (F.HERMES, BARE, False),
        (F.HERMES, f"I look it up.\n{HERMES}", False),
        (F.HERMES, HERMES.replace("Paris", "</tool_call> <tool_call>"), True),
        (F.HERMES, HERMES.replace("days", "hours"), False),
        (F.HERMES, HERMES.replace("3", '"3"'), False),
        (F.HERMES, HERMES.replace('"get"', '"getting"'), False),
        (F.HERMES, f"{HERMES}\n\n", False),
        (F.QWEN3_CODER, CODER, True),
        (F.QWEN3_CODER, f"{CODER}\n{CODER_NOW}", True),
        (F.QWEN3_CODER, CODER.replace("Paris", "\n"), True),
        (F.QWEN3_CODER, CODER.replace("Paris", "</function>"), True),
        (F.QWEN3_CODER, CODER.replace("Paris", "a</parameter>"), False),
        (F.QWEN3_CODER, CODER.replace("3", "three"), False),
        (F.QWEN3_CODER, CODER.replace("days", "hours"), False),
        (F.QWEN3_CODER, CODER.removeprefix("<tool_call>\n"), False),
        (F.CHATGLM3, GLM, True),
        (F.CHATGLM3, f"{GLM}\n{GLM_NOW}", True),
        (F.CHATGLM3, GLM.replace(", days=3", ""), True),
        (F.CHATGLM3, GLM.replace("3", "three"), False),
        (F.CHATGLM3, GLM.replace('city="Paris", ', ""), False),
        (F.LLAMA3, LLAMA, True),
        (F.LLAMA3, f"{LLAMA}; {LLAMA}", False),
        (F.LLAMA3, LLAMA.replace("parameters", "arguments"), False),
        (F.QWEN_AGENT, AGENT, True),
        (F.QWEN_AGENT, f"{AGENT}\n{AGENT_NOW}\n✿RESULT✿", True),
        (F.QWEN_AGENT, f"{AGENT}\n✿RETURN✿", True),
        (F.QWEN_AGENT, f"{AGENT}\n✿RETURN✿: ok", False),
        (F.REACT, REACT, True),
        (F.REACT, f"Thought: Where is it?\n{REACT}", True),
        (F.REACT, f"Thought: Where\nis it?\n{REACT}", False),
        (F.REACT, f"{REACT}\n{REACT}", False),
        (F.REACT, f"{REACT}\nObservation: 3", False),
    ],
)
def test_calls_that_are_required(tool_format: ToolFormat, text: str, expected: bool) -> None:
    assert follows(grammar(tool_format, is_required=True), text) == expected


@pytest.mark.parametrize(
    ("tool_format", "text", "expected"),
    [
        (F.HERMES, "", True),
        (F.HERMES, 'It is <b>3</b> & {"name": "get", "arguments": 3}.\n', True),
        (F.HERMES, f"I look it up.\n\n{HERMES}\n{HERMES_NOW}", True),
        (F.HERMES, f"{HERMES}\nDone.", False),
        (F.HERMES, f"Hm. {HERMES.replace('get', 'rm')}", False),
        (F.HERMES, "<tool_call>now", False),
        (F.HERMES, BARE, True),
        (F.HERMES, f"Here:\n```json\n{BARE}\n```", True),
        (F.HERMES, f"```json\n{BARE}\n```\n```json\n{BARE}\n```", True),
        (F.HERMES, f"<tools>\n{BARE}\n</tools>", True),
        (F.HERMES, f"[{BARE}, {BARE}]", True),
        (F.HERMES, '{\n  "name": "get",\n  "arguments": {\n    "city": "P"\n  }\n}', True),
        (F.HERMES, BARE.replace('"name": "get"', "'name': 'get'"), True),
        (F.HERMES, BARE.replace("3", '"3"'), False),
        (F.HERMES, f"a\n  {BARE.replace('3', 'null')}", False),
        (F.HERMES, BARE.replace("arguments", "age"), False),
        (F.HERMES, BARE.replace('"get"', "'get'").replace("arguments", "age"), False),
        (F.HERMES, f"```\n{BARE.replace('city', 'town')}\n```", False),
        (F.HERMES, '{"name": "Ann", "age": 3}', True),
        (F.HERMES, '{"name": "getty", "age": 3}', True),
        (F.HERMES, '{"name": "get_no", "age": 3}\n{"name": "get_now", "age": 3}', False),
        (F.HERMES, f'{{"name": "Ann"}}\n{BARE}', True),
        (F.HERMES, f'{{"name": "Ann"}}\n{HERMES}', True),
        (F.HERMES, f"{BARE}\nDone.", False),
        (F.QWEN3_CODER, f"I look it up.\n\n{CODER}", True),
        (F.QWEN3_CODER, CODER.removeprefix("<tool_call>\n"), True),
        (F.QWEN3_CODER, "a <function> or <tool_call>\n", True),
        (F.QWEN3_CODER, "a <function=b", False),
        (F.QWEN3_CODER, f"{CODER}\nDone.", False),
        (F.CHATGLM3, GLM, True),
        (F.CHATGLM3, "get\n3", True),
        (F.CHATGLM3, "get is a ```python\ntool_call(3)", True),
        (F.CHATGLM3, "a\nget\n ```python\ntool_call(3)", False),
        (F.CHATGLM3, "a<|assistant|>get\n ```python\ntool_call(3)", False),
        (F.LLAMA3, LLAMA, True),
        (F.LLAMA3, f"So: {LLAMA}", True),
        (F.LLAMA3, '{"name": "rm", "parameters": {}}', False),
        (F.LLAMA3, ' <|python_tag|> {"a": 1}', False),
        (F.LLAMA3, "<|python_tag|>get()", True),
        (F.QWEN_AGENT, f"I look it up.\n{AGENT}\n{AGENT_NOW}", True),
        (F.QWEN_AGENT, f"✿RETURN✿: a {AGENT}", True),
        (F.QWEN_AGENT, "✿RETURN✿: a ✿ARGS✿: b", True),
        (F.QWEN_AGENT, "✿RETURN✿: a ✿FUNCTION✿: b", False),
        (F.REACT, f"Thought: a\nb\n{REACT}", True),
        (F.REACT, f"Final Answer: a\n{REACT.replace('3', 'x')}", True),
        (F.REACT, f"a {REACT.replace('3', 'x')}", True),
        (F.REACT, f"a\n {REACT.replace('3', 'x')}", False),
        (F.REACT, "a\nACTION\t：rm", False),
        (F.REACT, "a\nAct\u0131on: rm", True),
        (F.REACT, f"Final An\u017fwer: a\n{REACT.replace('3', 'x')}", False),
        (F.REACT, f"{REACT}\n", False),
    ],
)
def test_calls_that_are_optional(tool_format: ToolFormat, text: str, expected: bool) -> None:
    assert follows(grammar(tool_format), text) == expected


@pytest.mark.parametrize(
    ("tool_format", "call", "separator"),
    [
        (F.HERMES, HERMES, "\n"),
        (F.HERMES, BARE, ", "),
        (F.QWEN3_CODER, CODER, "\n"),
        (F.CHATGLM3, GLM, "\n"),
        (F.QWEN_AGENT, AGENT, "\n"),
    ],
)
def test_one_call_or_several(tool_format: ToolFormat, call: str, separator: str) -> None:
    several = separator.join([call] * 16)
    assert follows(grammar(tool_format), several)
    assert not follows(grammar(tool_format), several + separator + call)
    one = grammar(tool_format, allows_parallel=False)
    assert follows(one, call) and not follows(one, f"{call}{separator}{call}")


@pytest.mark.parametrize(
    ("tool_format", "markers", "text", "expected"),
    [
        (F.HERMES, "<tool_call> </tool_call>", HERMES, True),
        (F.HERMES, "<tool_call> </tool_call>", f"a\n{HERMES}\n{HERMES_NOW}", True),
        (F.HERMES, "<tool_call> </tool_call>", "a</tool_call>", False),
        (F.QWEN3_CODER, "<tool_call> </tool_call>", CODER, True),
        (F.QWEN3_CODER, "<tool_call> </tool_call>", f"a\n{CODER}\n{CODER_NOW}", True),
        (F.QWEN3_CODER, "<tool_call>", f"a\n{CODER}", True),
        (F.CHATGLM3, "<|assistant|>", f"\n a<|assistant|>{GLM}\n<|assistant|>{GLM_NOW}", True),
        (F.CHATGLM3, "<|assistant|>", f"{GLM}\n{GLM_NOW}", False),
        (F.CHATGLM3, "<|assistant|>", "a<|assistant|>b", False),
        (F.LLAMA3, "<|python_tag|>", LLAMA, True),
        (F.LLAMA3, "<|python_tag|>", f"<|python_tag|>{LLAMA}", False),
    ],
)
def test_markers_that_are_control_tokens(
    tool_format: ToolFormat, markers: str, text: str, expected: bool
) -> None:
    special = {marker: SPECIAL[marker] for marker in markers.split()}
    assert follows(grammar(tool_format, special_tokens=special), text, special) == expected


def test_a_control_token_spelled_out_begins_a_call_too() -> None:
    special = {marker: SPECIAL[marker] for marker in ("<tool_call>", "</tool_call>")}
    hermes = grammar(F.HERMES, special_tokens=special)
    spelled = {"</tool_call>": SPECIAL["</tool_call>"]}
    assert follows(hermes, HERMES, spelled) and not follows(hermes, "<tool_call>a", spelled)


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        (Thinking("<think>", "</think>", is_open=False), f"<think>{HERMES}</think>\n\nNo.", True),
        (Thinking("<think>", "</think>", is_open=False), "<think>a</think>\n<tool_call>a", False),
        (Thinking("<think>", "</think>", is_open=False), "<think>a", False),
        (Thinking("<think>", "</think>", is_open=False), f"a\n{HERMES}", True),
        (Thinking("<think>", "</think>", is_open=True), f"<tool_call></think>\n{HERMES}", True),
        (Thinking("<think>", "</think>", is_open=True), HERMES, False),
    ],
)
def test_thinking(thinking: Thinking, text: str, expected: bool) -> None:
    opening = None if thinking.is_open else "<think>"
    lark = grammar(F.HERMES, thinking_opening=opening).text
    assert follows(Grammar(kind="lark", text=lark, thinking=thinking), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("Where is it?\n" + REACT, True), (REACT, False), (f"\n{REACT}", False)]
)
def test_a_prompt_that_ends_in_a_thought(text: str, expected: bool) -> None:
    assert follows(grammar(F.REACT, is_required=True, continues_line=True), text) == expected


def test_what_a_format_cannot_be_held_to() -> None:
    refused = set()
    for tool_format in ToolFormat:
        for key, schema in SCHEMAS.items():
            try:
                grammar(tool_format, (tool_of("f", schema),))
            except UnsupportedSchema as exc:
                assert str(exc).startswith("Invalid schema for function 'f': ")
                refused.add((tool_format, key))
    assert refused == {
        (F.QWEN3_CODER, key) for key in ("alternatives", "by pattern", "names with blanks")
    }
    date = {
        "type": "object",
        "properties": {"day": {"type": "string", "format": "date"}},
        "required": ["day"],
        "additionalProperties": False,
    }
    with pytest.raises(UnsupportedSchema, match="'format'"):
        grammar(F.QWEN3_CODER, (tool_of("f", date, strict=True),))


@pytest.mark.parametrize("tool_format", ToolFormat)
def test_a_schema_that_cannot_be_compiled_names_its_function(tool_format: ToolFormat) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}}
    fine = {"type": "object", "properties": {"a": {"oneOf": [{"type": "integer"}, {}]}}}
    lark = grammar(tool_format, (*TOOLS, tool_of("fine", fine), tool_of("bad", bad))).text
    problem = problem_of(grammars.TOKENIZER, Grammar(kind="lark", text=lark))
    assert problem is not None
    where = "('properties', 'a', 'items')"
    assert problem == f"function 'bad': In context={where}, Invalid type: strin."


def test_a_problem_of_the_answers_schema_is_not_a_functions() -> None:
    lark = grammar(F.HERMES, content_schema={"type": "strin"}).text
    problem = problem_of(grammars.TOKENIZER, Grammar(kind="lark", text=lark))
    assert problem == "response_format: In context=(), Invalid type: strin."
