"""A checked API request and the served model into what the engine is asked: EngineRequests.

Owns the order of defaults (request, then the model's generation_config, then OpenAI's), the check
of the context length, seeds and token ids. Pure and thread-safe: long prompts are encoded off the
event loop.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.messages import EngineRequest, Grammar, SamplingParams
from protocol.chat import ChatRequest
from protocol.chat_messages import Message
from protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from protocol.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, NotFound
from protocol.prompt import TemplateError
from protocol.sampling import SamplingFields
from server.grammars import grammar_of, thinking_before
from server.state import ServedModel
from server.thinking import thinking_kwargs

# Far below the probability of any vocabulary's most likely token: keeps exactly that one. OpenAI
# takes top_p 0, the engine does not.
_SMALLEST_TOP_P = 1e-6
_NUM_SEEDS = 2**64
_TEMPLATE_ARGUMENTS = frozenset(
    {
        *("self", "messages", "tools", "add_generation_prompt"),
        *("continue_final_message", "bos_token", "eos_token"),
    }
)


def check_model(name: str, model: ServedModel) -> None:
    """Raises ModelNotFound unless the model is served under this name."""
    if name not in model.names:
        raise ModelNotFound(name)


def system_fingerprint(model: ServedModel) -> str:
    """Name the configuration that answers; equal for every server of one model."""
    facts = f"{model.names[0]} {model.max_model_len} {sorted(model.sampling_defaults.items())}"
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]


def chat_requests(request: ChatRequest, model: ServedModel, reply_id: str) -> list[EngineRequest]:
    """Return one engine request for each of the n choices.

    Raises InvalidRequest (template, token ids), ContextLengthExceeded, NotFound (no chat model).
    """
    add_generation_prompt = request.add_generation_prompt
    prompt_ids = encode_messages(
        request.messages,
        model,
        add_generation_prompt=(
            not request.continue_final_message
            if add_generation_prompt is None
            else add_generation_prompt
        ),
        continue_final_message=bool(request.continue_final_message),
        template_kwargs=thinking_kwargs(
            request.reasoning_effort, request.chat_template_kwargs or {}, model.chat_template
        ),
    )
    _check_prompt_length(len(prompt_ids), model.max_model_len, "messages")
    max_tokens = request.max_output_tokens
    if max_tokens is None:
        max_tokens = model.max_model_len - len(prompt_ids)
    _check_total_length(len(prompt_ids), max_tokens, model.max_model_len, "messages")
    sampling = _SamplingBuilder(request, model).build(
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    grammar = grammar_of(request.response_format, request.structured_outputs)
    if grammar is not None:
        thinking = thinking_before(prompt_ids, model)
        grammar = msgspec.structs.replace(grammar, thinking=thinking)
    return [
        _engine_request(request, f"{reply_id}-{i}", prompt_ids, sampling, i, grammar)
        for i in range(request.num_choices)
    ]


def completion_requests(
    request: CompletionRequest, model: ServedModel, reply_id: str
) -> list[EngineRequest]:
    """Return `num_candidates` engine requests for each prompt, prompt by prompt.

    Raises InvalidRequest (token ids), ContextLengthExceeded.
    """
    builder = _SamplingBuilder(request, model)
    grammar = grammar_of(None, request.structured_outputs)
    is_ranked = request.num_candidates > request.num_choices
    requests: list[EngineRequest] = []
    for prompt in request.prompts:
        prompt_ids = encode_prompt(prompt, model)
        max_tokens = _completion_length(request, len(prompt_ids), model.max_model_len)
        sampling = builder.build(
            max_tokens=max_tokens,
            # candidates are ranked by their logprobs, asked for or not
            logprobs=0 if is_ranked and request.logprobs is None else request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
        )
        for i in range(request.num_candidates):
            sequence_id = f"{reply_id}-{len(requests)}"
            requests.append(_engine_request(request, sequence_id, prompt_ids, sampling, i, grammar))
    return requests


def encode_messages(
    messages: Sequence[Message],
    model: ServedModel,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the prompt token ids of a conversation. Raises InvalidRequest, NotFound."""
    if model.chat_template is None:
        raise NotFound(
            "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
            "Did you mean to use v1/completions?",
            param="model",
        )
    clash = _TEMPLATE_ARGUMENTS.intersection(template_kwargs or {})
    if clash:
        raise InvalidRequest(
            f"Invalid key in 'chat_template_kwargs': {min(clash)}.",
            param="chat_template_kwargs",
            code="invalid_value",
        )
    try:
        return model.chat_template.encode(
            [template_message(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(template_kwargs or {}),
        )
    except TemplateError as exc:
        raise InvalidRequest(str(exc), param="messages", code="invalid_value") from exc


def encode_prompt(
    prompt: str | list[int], model: ServedModel, *, add_special_tokens: bool = True
) -> list[int]:
    """Return a plain prompt's token ids; in text, control tokens are control tokens.

    Raises InvalidRequest for an id outside the vocabulary and for an empty prompt.
    """
    tokenizer = model.tokenizer
    if not isinstance(prompt, str):
        _check_token_ids(prompt, model, "prompt")
        return prompt
    prompt_ids = tokenizer.encode(prompt, parse_special=True)
    if add_special_tokens:
        prompt_ids = [*tokenizer.prompt_prefix, *prompt_ids]
    if not prompt_ids:
        raise InvalidRequest(
            "Invalid 'prompt': empty string. This model needs at least one token to start from.",
            param="prompt",
            code="empty_string",
        )
    return prompt_ids


def template_message(message: Message) -> dict[str, str]:
    """A message as chat templates know them."""
    # templates know "system"; OpenAI's newer name for it is "developer"
    role = "system" if message.role == "developer" else message.role
    optional = {"name": message.name, "reasoning_content": message.thinking}
    given = {field: value for field, value in optional.items() if value is not None}
    return {"role": role, "content": message.text, **given}


def _check_token_ids(token_ids: Sequence[int], model: ServedModel, param: str) -> None:
    worst = max(token_ids, default=0)
    if worst >= model.tokenizer.vocab_size:
        raise InvalidRequest(
            f"Invalid token id in '{param}': {worst}. Maximum value is "
            f"{model.tokenizer.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )


def _completion_length(request: CompletionRequest, prompt_length: int, max_length: int) -> int:
    if request.max_tokens is not None:
        if request.max_tokens:
            _check_prompt_length(prompt_length, max_length, None)
        _check_total_length(prompt_length, request.max_tokens, max_length, None)
        return request.max_tokens
    _check_prompt_length(prompt_length, max_length, None)
    return min(DEFAULT_MAX_TOKENS, max_length - prompt_length)


def _check_prompt_length(length: int, max_length: int, param: str | None) -> None:
    """At least one token must fit behind the prompt. `param` is "messages" or, for text, None."""
    if length < max_length:
        return
    noun, verb = ("messages", "resulted in") if param else ("prompt", "has")
    raise ContextLengthExceeded(
        f"This model's maximum context length is {max_length} tokens. However, your {noun} {verb} "
        f"{length} tokens. Please reduce the length of the {noun}.",
        param=param,
    )


def _check_total_length(length: int, max_tokens: int, max_length: int, param: str | None) -> None:
    if length + max_tokens <= max_length:
        return
    noun = "messages" if param else "prompt"
    raise ContextLengthExceeded(
        f"This model's maximum context length is {max_length} tokens. However, you requested "
        f"{length + max_tokens} tokens ({length} in the {noun}, {max_tokens} in the completion). "
        f"Please reduce the length of the {noun} or completion.",
        param=param,
    )


class _SamplingBuilder:
    """The sampling params that all sequences of a request share."""

    def __init__(self, request: SamplingFields, model: ServedModel) -> None:
        self._request = request
        self._defaults = model.sampling_defaults
        self._logit_bias = {int(key): bias for key, bias in (request.logit_bias or {}).items()}
        _check_token_ids(list(self._logit_bias), model, "logit_bias")
        _check_token_ids(request.stop_token_ids or (), model, "stop_token_ids")

    def build(
        self, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """The seed is still to be set. Raises InvalidRequest if min_tokens > max_tokens."""
        request = self._request
        min_tokens = request.min_tokens or 0
        if min_tokens > max_tokens:
            raise InvalidRequest(
                f"Invalid 'min_tokens': {min_tokens} is more than the {max_tokens} tokens that may "
                "be generated.",
                param="min_tokens",
                code="invalid_value",
            )
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self._temperature(),
            top_p=max(self._resolve("top_p", 1.0), _SMALLEST_TOP_P),
            top_k=max(int(self._resolve("top_k", 0)), 0),
            min_p=self._resolve("min_p", 0.0),
            repetition_penalty=self._resolve("repetition_penalty", 1.0),
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logit_bias=self._logit_bias,
            min_tokens=min_tokens,
            ignore_eos=bool(request.ignore_eos),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def _resolve(self, name: str, openai_default: float) -> float:
        for value in (getattr(self._request, name), self._defaults.get(name)):
            if value is not None:
                return float(value)
        return openai_default

    def _temperature(self) -> float:
        if self._request.temperature is None and self._defaults.get("do_sample") is False:
            return 0.0
        return self._resolve("temperature", 1.0)


def _engine_request(
    request: SamplingFields,
    sequence_id: str,
    prompt_ids: list[int],
    sampling: SamplingParams,
    choice: int,
    grammar: Grammar | None,
) -> EngineRequest:
    return EngineRequest(
        id=sequence_id,
        prompt_token_ids=prompt_ids,
        grammar=grammar,
        sampling=msgspec.structs.replace(sampling, seed=_choice_seed(request.seed, choice)),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
    )


def _choice_seed(seed: int | None, choice: int) -> int:
    """Choice 0 keeps the request's seed, so that n does not change it; prompts share seeds."""
    if seed is None:
        return secrets.randbits(64)
    unsigned = seed % _NUM_SEEDS
    if choice == 0:
        return unsigned
    digest = hashlib.blake2b(f"{unsigned}/{choice}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
