"""ReAct calls: golden outputs, split everywhere; no text but a thought before an answer is lost."""

from protocol.tools.calls import CallArguments, CallBegin, Content, ToolEvent
from protocol.tools.react import ReactParser
from tests.protocol.tools.parsing import (
    TOOLS,
    call,
)

BEIJING = '{"city": "北京"}'
CALL = f"Action: get_weather\nAction Input: {BEIJING}"
NOW = "Action: now\nAction Input: {}"
UNKNOWN = "Action: rm\nAction Input: {}"
WEATHER = call("get_weather", BEIJING)

GOLDEN: dict[str, tuple[str, list[ToolEvent]]] = {
    "no call": ("你好！\n", [Content("你好！\n")]),
    "one": (f"Thought: 我查一下。\n{CALL}", [Content("我查一下。"), *WEATHER]),
    "one, stopped": (f"Thought: 我查一下。\n{CALL}\n", [Content("我查一下。"), *WEATHER]),
    "one, observed": (f"{CALL}\nObservation:", WEATHER),
    "no thought": (CALL, WEATHER),
    "an empty thought": (f"\nThought:\n{CALL}", WEATHER),
    "text and no thought": (f"Sure.\n\n{CALL}", [Content("Sure."), *WEATHER]),
    "a thought of lines": (f"Thought: a\nb\n\n{CALL}", [Content("a\nb"), *WEATHER]),
    "full-width colons": (
        f"Thought：我查\nAction：get_weather\nAction Input：{BEIJING}\nObservation：",
        [Content("我查"), *WEATHER],
    ),
    "spaces and case": (
        f" Thought : a\n  action :get_weather  \n\n ACTION INPUT :\n{BEIJING}\n observation: b",
        [Content("a"), *WEATHER, Content("b")],
    ),
    "a name in quotes": (f"Action: `get_weather`\nAction Input: {BEIJING}", WEATHER),
    "a name in brackets": (f"Action: [get_weather]\r\nAction Input: {BEIJING}", WEATHER),
    "a fence": (f"Action: get_weather\nAction Input: ```json\n{BEIJING}\n```\n", WEATHER),
    "a fence in one line": (
        f"Action: get_weather\nAction Input: ```{BEIJING}``` ok",
        [*WEATHER, Content(" ok")],
    ),
    "an open fence": (f"Action: get_weather\nAction Input:\n```\n{BEIJING}\n", WEATHER),
    "half a fence": (f"Action: get_weather\nAction Input:\n```\n{BEIJING}\n``", WEATHER),
    "text behind": (f"{CALL}\n\nI have called it.", [*WEATHER, Content("\n\nI have called it.")]),
    "Python": (
        "Action: get_weather\nAction Input: {'city': \"it's\", 'is_celsius': None,}\n",
        call("get_weather", '{"city": "it\'s", "is_celsius": null}'),
    ),
    "quotes, labels and brackets in strings": (
        r"Action: 搜索" "\nAction Input: " r'{"词": "a \"}\" \nObservation: 🙂\nFinal Answer: \\"}',
        call("搜索", r'{"词": "a \"}\" \nObservation: 🙂\nFinal Answer: \\"}'),
    ),
    "lines in a string": (
        'Action: 搜索\nAction Input: {"词": "a\nObservation: b"}\nObservation: c',
        [*call("搜索", r'{"词": "a\nObservation: b"}'), Content("c")],
    ),
    "brackets too few": (
        'Action: get_weather\nAction Input: {"hours": [1\nObservation: b',
        [*call("get_weather", '{"hours": [1]}'), Content("b")],
    ),
    "no JSON": (
        "Action: now\nAction Input:  print(1)\n  print(2)\n\nObservation: 1\n2",
        [CallBegin("now"), CallArguments("print(1)\n  print(2)"), Content("1\n2")],
    ),
    "no JSON in a fence": (
        "Action: now\nAction Input:\n```py\nprint(1)\n```\n",
        [CallBegin("now"), CallArguments("```py\nprint(1)\n```")],
    ),
    "no input": ("Action: now\nAction Input:\nObservation: 5", [*call("now"), Content("5")]),
    "no input, stopped": ("Action: now\nAction Input:", call("now")),
    "several": (
        f"Thought: a\n{CALL}\nThought: b\n{NOW}\n",
        [Content("a"), *WEATHER, Content("b"), *call("now")],
    ),
    "several, one without input": (
        f"Action: now\nAction Input:\n{CALL}",
        [*call("now"), *WEATHER],
    ),
    "made up": (
        f"{CALL}\nObservation: 5\nThought: b\n{NOW}",
        [*WEATHER, Content(f"5\nThought: b\n{NOW}")],
    ),
    "an answer": (
        "Thought: I now know the final answer.\nFinal Answer: 你好！\n🙂",
        [Content("你好！\n🙂")],
    ),
    "an answer with blank lines": ("Thought: a\n\n\nFinal Answer:\n5", [Content("\n5")]),
    "an answer, otherwise written": ("thought：a\nFinal answer： b", [Content("b")]),
    "an answer only": ("\nFinal Answer: 5", [Content("5")]),
    "an answer with labels": (
        f"Final Answer: a\n{NOW}\nFinal Answer: b",
        [Content(f"a\n{NOW}\nFinal Answer: b")],
    ),
    "text and an answer": ("Well.\nFinal Answer: 5", [Content("Well.\n5")]),
    "a thought of lines and an answer": ("Thought: a\nb\nFinal Answer: 5", [Content("a\nb\n5")]),
    "a call and an answer": (f"{NOW}\nFinal Answer: 5", [*call("now"), Content("5")]),
    "a call, a thought and an answer": (
        f"{NOW}\nThought: a\nFinal Answer: 5",
        [*call("now"), Content("5")],
    ),
    "a thought only": ("Thought: 5\n", [Content("5\n")]),
    "a thought and a blank": ("Thought: 5\n\n\n", [Content("5\n\n\n")]),
    "a short thought behind a call": (f"{NOW}\nThought: A", [*call("now"), Content("A")]),
    "a later thought": ("a\nThought: b\n", [Content("a\nThought: b\n")]),
    "unknown": (f"Thought: a\n{UNKNOWN}\n", [Content(f"a\n{UNKNOWN}\n")]),
    "unknown and known": (f"{UNKNOWN}\n{NOW}", [Content(UNKNOWN), *call("now")]),
    "more than a name": (f"Action: now!\n{NOW}", [Content("Action: now!"), *call("now")]),
    "less than a name": (f"Action: no\n{NOW}", [Content("Action: no"), *call("now")]),
    "no input label": ("Action: now\nWell", [Content("Action: now\nWell")]),
    "cut in the name": ("Action: now", [Content("Action: now")]),
    "cut before the input": ("Action: now\nAction In", [Content("Action: now\nAction In")]),
    "cut in the input": (
        'Action: get_weather\nAction Input: {"city": "北',
        [CallBegin("get_weather"), CallArguments('{"city": "北')],
    ),
    "cut in a label": (f"{CALL}\nObserv", WEATHER),
    "cut in another call": (f"{CALL}\nAction: ", [*WEATHER, Content("\nAction: ")]),
    "an observation and no call": ("Observation: 5", [Content("Observation: 5")]),
    "letters that only look like a label's": (
        "Act\u0131on: now\nAction Input: {}",
        [Content("Act\u0131on: now\nAction Input: {}")],
    ),
    "labels in a line": (f"a Action: now {NOW}", [Content(f"a Action: now {NOW}")]),
}


MARKERS = (
    *("Thought:", "\nThought: ", "Action:", "\nAction: ", "\nAction Input: ", "\nObservation: "),
    *("Action", " Input", ":", f"\n{CALL}", f"\n{NOW}\n", f"\n{UNKNOWN}"),
)


def test_what_is_certain_is_sent_at_once() -> None:
    parser = ReactParser(TOOLS)
    assert parser.feed("Thought: I need") == []
    assert parser.feed(" it.\n") == []
    assert parser.feed("Acti") == []
    assert parser.feed("on: now") == [Content("I need it.")]
    assert parser.feed("\nAction Input") == []
    assert parser.feed(":") == [CallBegin("now")]
    assert parser.feed(' {"a"') == [CallArguments('{"a"')]
    assert parser.feed(": 1}\nObs") == [CallArguments(": 1}")]
    assert parser.flush() == []


def test_an_answer_without_labels_streams() -> None:
    parser = ReactParser(TOOLS)
    assert parser.feed("Hello") == [Content("Hello")]
    assert parser.feed(", world.\nA") == [Content(", world.")]
    assert parser.feed("nd") == [Content("\nAnd")]
    assert parser.feed("\nAction: search") == [Content("\nAction: search")]


def test_a_thought_that_goes_on_streams() -> None:
    parser = ReactParser(TOOLS)
    assert parser.feed("Thought: a\n") == []
    assert parser.feed("b") == [Content("a\nb")]
    assert parser.feed("c") == [Content("c")]


def test_a_prompt_that_ends_in_a_thought() -> None:
    parser = ReactParser(TOOLS)
    assert parser.feed("Thought:") == []
    assert parser.feed(" I now know.\nFinal Answer: 5") == [Content("5")]
