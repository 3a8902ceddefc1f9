"""Requests that would have the server fetch, run, read or show what it should not."""

import socket
import threading
from typing import Any

import pytest

from tests.server.scripted_app import App, saying
from tests.server.small_app import client_of
from tests.server.tool_app import HERMES, answering, prompt_of, tool_app


class Trap:
    """A web server that notes who comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.visits = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/x"

    def _wait(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.visits += 1
            connection.close()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()


def part(kind: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": kind, **fields}]
    return {"messages": [{"role": "user", "content": content}]}


async def test_no_field_makes_the_server_fetch_anything() -> None:
    trap = Trap()
    url = trap.url
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": url}}}
    attempts: list[dict[str, Any]] = [
        part("image_url", image_url={"url": url}),
        part("image_url", image_url=url),
        part("input_image", image_url=url),
        part("input_audio", input_audio={"data": url, "format": "wav"}),
        part("video_url", video_url={"url": url}),
        part("file", file={"file_id": url, "file_data": url}),
        {"chat_template": url},
        {"web_search_options": {}},
        {"tools": [{"type": "mcp", "server_url": url}]},
        {"documents": [url]},
        {"mm_processor_kwargs": {"url": url}},
        {"store": True},
    ]
    try:
        for fields in attempts:
            response = await App(saying("x")).chat(**fields)
            assert response.status_code == 400, fields
        # a reference stays text here; the engine's compiler does not follow it either
        assert (await App(saying("x")).chat(response_format=schema)).status_code in (200, 400)
    finally:
        trap.close()
    assert trap.visits == 0


TEMPLATES = (
    "{{ 7*7 }}",
    "{% for x in range(10**9) %}x{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self._TemplateReference__context }}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "{%",
    "{{",
)


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
async def test_a_template_in_a_message_is_text(text: str, role: str) -> None:
    app = tool_app(HERMES, answering("x"))
    messages = [{"role": role, "content": text}, {"role": "user", "content": text}]
    assert (await app.chat(messages=messages)).status_code == 200
    assert prompt_of(app).count(text) == 2


async def test_a_template_in_the_request_is_refused() -> None:
    for name in ("chat_template", "chat_template_url", "template"):
        response = await App().chat(**{name: "{{ 7*7 }}"})
        assert response.json()["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    "name",
    [
        *("self", "messages", "tools", "bos_token", "eos_token", "add_generation_prompt"),
        "continue_final_message",
    ],
)
async def test_a_request_does_not_change_what_a_template_is_given(name: str) -> None:
    response = await tool_app(HERMES).chat(chat_template_kwargs={name: "<|im_start|>"})
    assert response.json()["error"]["param"] == "chat_template_kwargs"


@pytest.mark.parametrize("value", ["<|im_end|>", ["<|im_end|>"], {"<|im_end|>": "<|im_end|>"}])
async def test_a_template_variable_makes_no_control_token(value: object) -> None:
    async def control_tokens(**fields: object) -> list[int]:
        app = tool_app(HERMES, answering("x"))
        response = await app.chat(**fields)
        assert response.status_code == 200, response.text
        ids = app.engine.requests[0].prompt_token_ids
        return [i for i in ids if app.state.model.tokenizer.is_special(i)]

    kwargs = {"answerer": value, "documents": value}
    assert await control_tokens(chat_template_kwargs=kwargs) == await control_tokens()


PATHS = (
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%00", "a%00.json", "~root"),
    *("....//....//etc/passwd", "%2e%2e/%2e%2e/x", "\\..\\..\\x", "file:///etc/passwd", "%ff%fe"),
    "x" * 5000,
)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
async def test_a_model_s_name_is_never_a_path(path: str) -> None:
    async with client_of(App().state) as client:
        response = await client.get(f"/v1/models/{path}")
    assert response.status_code == 404
    assert "root:" not in response.text and len(response.text) < 1500
    response = await App().chat(model=path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    """As in most JSON readers: a proxy that filters requests should read them so, too."""
    body = b'{"model": "nothing", "model": "org/small", "prompt": "a", "prompt": "b"}'
    app = App(saying("x"))
    assert (await app.post("/v1/completions", body)).status_code == 200
    assert app.engine.requests[0].prompt_token_ids == [
        *app.state.model.tokenizer.encode("b", parse_special=False)
    ]


async def test_a_failure_of_ours_tells_nothing_about_the_server() -> None:
    def broken(request: object) -> Any:
        raise RuntimeError("/srv/secret/path.py line 3, password=hunter2")

    for stream in (False, True):
        response = await App(broken).chat(stream=stream)
        text = response.text
        assert "hunter2" not in text and "Traceback" not in text and ".py" not in text
        assert '"type":"server_error"' in text


async def test_the_cache_of_prompts_is_shared_within_a_salt_only() -> None:
    """The salt of a request reaches the engine, whose block hashes begin with it."""
    app = App(saying("x"))
    await app.chat(cache_salt="tenant-a")
    await app.chat()
    assert [request.cache_salt for request in app.engine.requests] == ["tenant-a", ""]
