"""/tokenize agrees with the prompts the engine gets; /detokenize is its inverse."""

from typing import Any

import httpx
import pytest

from engine.fake import FakeEngine
from server.config import ServerConfig
from tests.server.small_app import END, client_of, small_state


async def post(path: str, body: object, **state: Any) -> httpx.Response:
    async with client_of(small_state(**state)) as client:
        return await client.post(path, json=body)


async def test_prompt_becomes_one_id_for_each_byte() -> None:
    response = await post("/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert response.status_code == 200
    body = response.json()
    assert body["count"] == len(body["tokens"]) == 3
    assert body["max_model_len"] == 100
    assert body["token_strs"] == ["h", "\ufffd", "\ufffd"]  # é is two bytes
    assert (await post("/detokenize", {"tokens": body["tokens"]})).json() == {"prompt": "hé"}


async def test_token_strs_only_on_request() -> None:
    body = (await post("/tokenize", {"prompt": "a"})).json()
    assert body.get("token_strs") is None


async def test_bos_is_added_where_the_model_wants_it() -> None:
    with_bos = (await post("/tokenize", {"prompt": "a"}, add_bos_token=True)).json()["tokens"]
    request = {"prompt": "a", "add_special_tokens": False}
    without = (await post("/tokenize", request, add_bos_token=True)).json()["tokens"]
    assert with_bos == [257, *without]
    assert (await post("/tokenize", {"prompt": "a"})).json()["tokens"] == without


async def test_special_tokens_in_a_raw_prompt_are_special_and_come_back() -> None:
    body = (await post("/tokenize", {"prompt": "a<|end|>"})).json()
    assert body["tokens"][-1] == END
    text = (await post("/detokenize", {"tokens": body["tokens"]})).json()["prompt"]
    assert text == "a<|end|>"


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_ids_are_those_the_engine_gets(endpoint: str) -> None:
    engine = FakeEngine(eos_token_ids=[END])
    messages = [{"role": "user", "content": "is <|end|> 好?"}]
    source: dict[str, object] = (
        {"messages": messages} if endpoint == "chat" else {"prompt": "a<|end|>b"}
    )
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    async with client_of(small_state(engine=engine)) as client:
        tokens = (await client.post("/tokenize", json=source)).json()["tokens"]
        body = {"model": "alias", "max_tokens": 1, **source}
        assert (await client.post(path, json=body)).status_code == 200
    assert engine.requests[0].prompt_token_ids == tokens
    assert tokens.count(END) == 1  # in the chat the template's, not the user's


async def test_messages_take_the_templates_options() -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def text_of(**options: object) -> str:
        async with client_of(small_state()) as client:
            response = await client.post("/tokenize", json={"messages": messages, **options})
            tokens = response.json()["tokens"]
            return str((await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"])

    assert await text_of() == "user:hi<|end|>assistant:"
    assert await text_of(add_generation_prompt=False) == "user:hi<|end|>"
    named = await text_of(chat_template_kwargs={"answerer": "bot"})
    assert named == "user:hi<|end|>bot:"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {"prompt": "a", "promt": 1}, "promt", "unknown_parameter"),
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": 5}, "prompt", "invalid_type"),
        ("/detokenize", {"tokens": [1, 258]}, "tokens[1]", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "integer_below_min_value"),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]", "invalid_type"),
        ("/detokenize", {"tokens": [1], "x": 1}, "x", "unknown_parameter"),
        (
            "/tokenize",
            {
                "messages": [{"role": "user", "content": "a"}],
                "chat_template_kwargs": {"messages": []},
            },
            "chat_template_kwargs",
            "invalid_value",
        ),
    ],
)
async def test_bad_requests(path: str, body: object, param: str, code: str) -> None:
    response = await post(path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_not_json_is_400_and_unknown_model_404(path: str) -> None:
    async with client_of(small_state()) as client:
        types = {"content-type": "application/json"}
        assert (await client.post(path, content=b"{", headers=types)).status_code == 400
        body = {"model": "gpt-9", "prompt": "a"} if path == "/tokenize" else {"model": "gpt-9"}
        if path == "/detokenize":
            body = {"model": "gpt-9", "tokens": []}  # type: ignore[dict-item]
        response = await client.post(path, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_messages_without_a_chat_template_are_refused() -> None:
    body = {"messages": [{"role": "user", "content": "a"}]}
    response = await post("/tokenize", body, has_chat_template=False)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["message"]


async def test_unknown_fields_can_be_let_through_with_a_header() -> None:
    config = ServerConfig(unknown_fields="warn")
    response = await post("/tokenize", {"prompt": "a", "junk": 1}, config=config)
    assert response.status_code == 200
    assert response.headers["x-qwen-serve-ignored-parameters"] == "junk"
