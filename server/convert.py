"""A checked API request and the served model into what the engine is asked: EngineRequests.

Owns the order of defaults (request, then the model's generation_config, then OpenAI's), the check
of the context length and seeds; prompts are made by server/prompts.py, what is of chat alone by
server/chat_plan.py. Pure and thread-safe.
"""

import hashlib
import secrets

import msgspec

from engine.messages import EngineRequest, Grammar, SamplingParams
from protocol.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from protocol.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from protocol.sampling import SamplingFields
from server.grammars import grammar_of
from server.prompts import check_token_ids, encode_prompt
from server.state import ServedModel

# Far below the probability of any vocabulary's most likely token: keeps exactly that one. OpenAI
# takes top_p 0, the engine does not.
_SMALLEST_TOP_P = 1e-6
_NUM_SEEDS = 2**64


def check_model(name: str, model: ServedModel) -> None:
    """Raises ModelNotFound unless the model is served under this name."""
    if name not in model.names:
        raise ModelNotFound(name)


def system_fingerprint(model: ServedModel) -> str:
    """Name the configuration that answers; equal for every server of one model."""
    facts = f"{model.names[0]} {model.max_model_len} {sorted(model.sampling_defaults.items())}"
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]


def completion_requests(
    request: CompletionRequest, model: ServedModel, reply_id: str
) -> list[EngineRequest]:
    """Return `num_candidates` engine requests for each prompt, prompt by prompt.

    Raises InvalidRequest (token ids), ContextLengthExceeded.
    """
    builder = SamplingBuilder(request, model)
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
            requests.append(engine_request(request, sequence_id, prompt_ids, sampling, i, grammar))
    return requests


def _completion_length(request: CompletionRequest, prompt_length: int, max_length: int) -> int:
    if request.max_tokens is not None:
        if request.max_tokens:
            check_prompt_length(prompt_length, max_length, None)
        check_total_length(prompt_length, request.max_tokens, max_length, None)
        return request.max_tokens
    check_prompt_length(prompt_length, max_length, None)
    return min(DEFAULT_MAX_TOKENS, max_length - prompt_length)


def check_prompt_length(length: int, max_length: int, param: str | None) -> None:
    """At least one token must fit behind the prompt. `param` is "messages" or, for text, None."""
    if length < max_length:
        return
    noun, verb = ("messages", "resulted in") if param else ("prompt", "has")
    raise ContextLengthExceeded(
        f"This model's maximum context length is {max_length} tokens. However, your {noun} {verb} "
        f"{length} tokens. Please reduce the length of the {noun}.",
        param=param,
    )


def check_total_length(length: int, max_tokens: int, max_length: int, param: str | None) -> None:
    if length + max_tokens <= max_length:
        return
    noun = "messages" if param else "prompt"
    raise ContextLengthExceeded(
        f"This model's maximum context length is {max_length} tokens. However, you requested "
        f"{length + max_tokens} tokens ({length} in the {noun}, {max_tokens} in the completion). "
        f"Please reduce the length of the {noun} or completion.",
        param=param,
    )


class SamplingBuilder:
    """The sampling params that all sequences of a request share."""

    def __init__(self, request: SamplingFields, model: ServedModel) -> None:
        self._request = request
        self._defaults = model.sampling_defaults
        self._logit_bias = {int(key): bias for key, bias in (request.logit_bias or {}).items()}
        check_token_ids(list(self._logit_bias), model, "logit_bias")
        check_token_ids(request.stop_token_ids or (), model, "stop_token_ids")

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


def engine_request(
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
