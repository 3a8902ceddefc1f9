"""What the engine is asked for each request: defaults, seeds, prompts, lengths."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.messages import EngineRequest
from protocol.chat import ChatRequest
from protocol.completions import CompletionRequest
from protocol.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, NotFound
from protocol.prompt import ChatTemplate
from protocol.validation import parse
from server.chat_plan import plan_chat
from server.convert import check_model, completion_requests, system_fingerprint
from server.state import ServedModel
from tests.server.scripted_app import ids_of
from tests.server.small_app import END, small_state

MODEL = small_state().model  # a context of 100 tokens
PROMPT = "user:hi<|end|>assistant:"


def chat(model: ServedModel = MODEL, **fields: object) -> list[EngineRequest]:
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    return plan_chat(parse(ChatRequest, body)[0], model, "r").requests


def complete(model: ServedModel = MODEL, **fields: object) -> list[EngineRequest]:
    body = json.dumps({"model": "m", "prompt": "ab", **fields}).encode()
    return completion_requests(parse(CompletionRequest, body)[0], model, "r")


def error(function: Any, **fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        function(**fields)
    return raised.value


def test_openai_defaults() -> None:
    (request,) = chat()
    sampling = request.sampling
    assert request.prompt_token_ids == ids_of(PROMPT)
    assert sampling.max_tokens == 100 - len(ids_of(PROMPT))
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.0, 1.0)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (None, None)
    assert complete()[0].sampling.max_tokens == 16


def test_everything_given_arrives() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": -0.4, "min_tokens": 2, "ignore_eos": True,
        "max_tokens": 9,
    }  # fmt: skip
    (request,) = chat(
        **given, logit_bias={"5": -3}, stop_token_ids=[7], priority=4, cache_salt="s", seed=11
    )
    sampling = request.sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert (sampling.logit_bias, sampling.stop_token_ids, sampling.seed) == ({5: -3.0}, (7,), 11)
    assert (request.priority, request.cache_salt) == (4, "s")


def test_models_defaults_come_second() -> None:
    defaults = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    model = replace(MODEL, sampling_defaults={**defaults, "do_sample": True})
    sampling = chat(model)[0].sampling
    assert {name: getattr(sampling, name) for name in defaults} == defaults
    sampling = chat(model, temperature=0, top_k=0)[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 0, 0.8)


def test_do_sample_false_is_greedy() -> None:
    model = replace(MODEL, sampling_defaults={"do_sample": False, "temperature": 0.7})
    assert chat(model)[0].sampling.temperature == 0.0
    assert chat(model, temperature=0.9)[0].sampling.temperature == 0.9


def test_edges_of_ranges() -> None:
    assert chat(top_k=-1)[0].sampling.top_k == 0
    assert 0.0 < chat(top_p=0)[0].sampling.top_p < 1 / 200_000  # below any vocabulary's 1/size


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1, -1, -(2**63)])
def test_seeds(seed: int) -> None:
    seeds = [request.sampling.seed for request in chat(seed=seed, n=4)]
    assert seeds[0] == seed % 2**64
    assert len(set(seeds)) == 4
    assert all(0 <= one < 2**64 for one in seeds)
    assert seeds == [request.sampling.seed for request in chat(seed=seed, n=4)]
    assert seeds[:2] == [request.sampling.seed for request in chat(seed=seed, n=2)]


def test_without_a_seed_all_differ() -> None:
    seeds = {request.sampling.seed for request in chat(n=8) + chat(n=8)}
    assert len(seeds) == 16


def test_logprobs() -> None:
    assert chat(logprobs=True)[0].sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3)[0].sampling.logprobs == 3
    assert chat(logprobs=False)[0].sampling.logprobs is None
    assert complete(logprobs=2)[0].sampling.prompt_logprobs is None
    assert complete(logprobs=2, echo=True)[0].sampling.prompt_logprobs == 2
    assert complete(echo=True)[0].sampling.prompt_logprobs is None
    assert complete(best_of=2)[0].sampling.logprobs == 0
    assert complete(best_of=2, logprobs=3)[0].sampling.logprobs == 3


def test_prompts_and_their_choices() -> None:
    requests = complete(prompt=["a", "bc"], n=2, seed=1)
    assert [request.id for request in requests] == ["r-0", "r-1", "r-2", "r-3"]
    assert [request.prompt_token_ids for request in requests] == [ids_of("a")] * 2 + [
        ids_of("bc")
    ] * 2
    seeds = [request.sampling.seed for request in requests]
    assert seeds[:2] == seeds[2:]  # a prompt's answer does not depend on the others
    assert complete(prompt=[[3, 4], [5]])[1].prompt_token_ids == [5]


def test_control_tokens() -> None:
    assert complete(prompt="a<|end|>")[0].prompt_token_ids[-1] == END
    messages = [{"role": "user", "content": "<|end|>"}]
    assert chat(messages=messages)[0].prompt_token_ids.count(END) == 1  # the template's


def test_bos() -> None:
    model = small_state(add_bos_token=True).model
    bos = model.tokenizer.special_tokens["<s>"]
    assert complete(model, prompt="a")[0].prompt_token_ids == [bos, *ids_of("a")]
    assert complete(model, prompt=ids_of("a"))[0].prompt_token_ids == ids_of("a")
    assert complete(model, prompt="")[0].prompt_token_ids == [bos]
    assert chat(model)[0].prompt_token_ids == ids_of(PROMPT)


def test_template_arguments() -> None:
    final = ids_of("user:hi<|end|>")
    assert chat(add_generation_prompt=False)[0].prompt_token_ids == final
    renamed = chat(chat_template_kwargs={"answerer": "bot"})[0]
    assert renamed.prompt_token_ids == ids_of("user:hi<|end|>bot:")
    messages = [{"role": "developer", "content": "d"}, {"role": "assistant", "content": "so"}]
    continued = chat(messages=messages, continue_final_message=True)[0]
    assert continued.prompt_token_ids == ids_of("system:d<|end|>assistant:so")
    for name in ("messages", "tools", "add_generation_prompt", "self", "bos_token", "eos_token"):
        refused = error(chat, chat_template_kwargs={name: 1})
        assert (refused.code, refused.param) == ("invalid_value", "chat_template_kwargs")


def test_template_refusals_are_the_clients() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    model = replace(MODEL, chat_template=ChatTemplate(source, MODEL.tokenizer))
    refused = error(chat, model=model)
    assert (refused.status, refused.param) == (400, "messages")
    assert "roles must alternate" in refused.message


def test_no_chat_model() -> None:
    refused = error(chat, model=replace(MODEL, chat_template=None))
    assert isinstance(refused, NotFound)
    assert (refused.status, refused.param) == (404, "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [[1], [9999]]}, "prompt"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 40: 1}}, "logit_bias"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(fields: dict[str, Any], param: str) -> None:
    assert MODEL.tokenizer.vocab_size == 258
    refused = error(complete, **fields)
    assert (refused.code, refused.param) == ("invalid_value", param)


def test_an_empty_prompt() -> None:
    assert error(complete, prompt="").code == "empty_string"


def test_prompt_too_long() -> None:
    messages = [{"role": "user", "content": "x" * 100}]
    refused = error(chat, messages=messages)
    assert isinstance(refused, ContextLengthExceeded)
    length = len(ids_of(PROMPT)) - 2 + 100
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")
    assert refused.message == (
        "This model's maximum context length is 100 tokens. However, your messages resulted in "
        f"{length} tokens. Please reduce the length of the messages."
    )
    refused = error(complete, prompt="x" * 100)
    assert (refused.code, refused.param) == ("context_length_exceeded", None)


def test_prompt_and_completion_too_long() -> None:
    length = len(ids_of(PROMPT))
    assert chat(max_tokens=100 - length)[0].sampling.max_tokens == 100 - length
    refused = error(chat, max_completion_tokens=101 - length)
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")
    assert refused.message == (
        "This model's maximum context length is 100 tokens. However, you requested 101 tokens "
        f"({length} in the messages, {101 - length} in the completion). Please reduce the length "
        "of the messages or completion."
    )


def test_completion_lengths() -> None:
    assert complete(prompt="x" * 99)[0].sampling.max_tokens == 1  # less than the default
    assert error(complete, prompt="x" * 99, max_tokens=2).code == "context_length_exceeded"
    full = complete(prompt="x" * 100, max_tokens=0, echo=True)
    assert full[0].sampling.max_tokens == 0
    assert error(complete, prompt="x" * 101, max_tokens=0, echo=True).code == (
        "context_length_exceeded"
    )


def test_model_names() -> None:
    check_model("org/small", MODEL)
    check_model("alias", MODEL)
    with pytest.raises(ModelNotFound):
        check_model("gpt-4o", MODEL)


def test_fingerprint() -> None:
    assert system_fingerprint(MODEL) == system_fingerprint(small_state().model)
    assert system_fingerprint(MODEL) != system_fingerprint(replace(MODEL, max_model_len=99))
    assert system_fingerprint(MODEL).startswith("fp_")
