"""Builds the ServedModel of a server process from a checkpoint and what its engine says.

The text half (tokenizer, chat template) takes a moment and needs no engine, so it is built apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.messages import EngineInfo
from protocol.library_tokenizer import LibraryTokenizer
from protocol.prompt import ChatTemplate, TemplateError
from protocol.tokenizer import Tokenizer
from server.state import ServedModel

# Those of generation_config.json that server/convert.py takes a default from.
_SAMPLING_KEYS = (*("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),)


# A tokenizer.json of another shape than its readers expect shows as any of these.
_BROKEN_TEXT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    TemplateError,
)


@dataclass(frozen=True, slots=True)
class ModelText:
    """The half of a model that works on text."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ModelText":
        """Raises CheckpointError when the tokenizer or the chat template cannot be used."""
        try:
            tokenizer = tokenizer_of(checkpoint)
            source = checkpoint.chat_template
            return cls(tokenizer, ChatTemplate(source, tokenizer) if source else None)
        except _BROKEN_TEXT as exc:
            raise CheckpointError(
                f"The tokenizer of {checkpoint.path} is not usable: {exc}."
            ) from exc


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Raises CheckpointError where there is none, ValueError or KeyError where it is broken."""
    vocabulary = checkpoint.gguf_vocabulary
    if vocabulary is not None:
        return LibraryTokenizer.from_gguf(
            model=vocabulary.model,
            pre=vocabulary.pre,
            tokens=vocabulary.tokens,
            token_types=vocabulary.token_types,
            merges=vocabulary.merges,
            bos_token_id=vocabulary.bos_token_id,
            eos_token_id=vocabulary.eos_token_id,
            add_bos_token=vocabulary.add_bos_token,
        )
    if checkpoint.tokenizer_json is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json")
    return LibraryTokenizer.from_json(checkpoint.tokenizer_json, checkpoint.tokenizer_config)


def served_model(
    checkpoint: Checkpoint, text: ModelText, info: EngineInfo, names: Sequence[str]
) -> ServedModel:
    """Put the halves together. `created` is when the weights were written: the same in every
    worker and after every restart.
    """
    defaults = {
        key: checkpoint.generation_config[key]
        for key in _SAMPLING_KEYS
        if checkpoint.generation_config.get(key) is not None
    }
    return ServedModel(
        names=tuple(names),
        created=int(checkpoint.path.stat().st_mtime),
        tokenizer=text.tokenizer,
        chat_template=text.chat_template,
        eos_token_ids=checkpoint.eos_token_ids,
        sampling_defaults=defaults,
        max_model_len=info.max_model_len,
    )
