"""/v1/models: OpenAI's objects under every served name."""

from tests.server.small_app import client_of, small_state

SMALL = {
    "id": "org/small",
    "object": "model",
    "created": 1_700_000_000,
    "owned_by": "qwen-serve",
    "max_model_len": 100,
}


async def test_list_has_every_name() -> None:
    async with client_of(small_state()) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"object": "list", "data": [SMALL, {**SMALL, "id": "alias"}]}


async def test_retrieve_by_a_name_with_a_slash_plain_or_quoted() -> None:
    async with client_of(small_state()) as client:
        for path in ("/v1/models/org/small", "/v1/models/org%2Fsmall"):
            assert (await client.get(path)).json() == SMALL


async def test_unknown_model_is_openais_404() -> None:
    async with client_of(small_state()) as client:
        response = await client.get("/v1/models/gpt-9")
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": "The model `gpt-9` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


async def test_other_methods_are_405() -> None:
    async with client_of(small_state()) as client:
        response = await client.delete("/v1/models/alias")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_supported"
