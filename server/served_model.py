"""Builds the ServedModel of a server process from a checkpoint and what its engine says.

The text half (tokenizer, chat template) takes a moment and needs no engine, so it is built apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.checkpoint import Checkpoint
from engine.errors import CheckpointError
from engine.messages import EngineInfo
from engine.tokenizer_files import MergesFiles, SentencePieceFile, TiktokenFiles
from protocol import merges_files
from protocol.baichuan_format import BaichuanFormat
from protocol.chatglm_format import ChatGLM2Format, ChatGLM3Format
from protocol.library_tokenizer import LibraryTokenizer
from protocol.prompt import ChatTemplate, TemplateError
from protocol.prompt_format import PromptFormat
from protocol.qwen_format import QwenFormat
from protocol.sentencepiece_tokenizer import SentencePieceTokenizer
from protocol.tiktoken_tokenizer import TiktokenTokenizer
from protocol.tokenizer import Tokenizer
from protocol.tools.formats import ToolFormat
from server.state import ServedModel
from server.tool_support import ToolSupport, tool_support

# Those of generation_config.json that server/convert.py takes a default from.
_SAMPLING_KEYS = (*("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),)

_QWEN_WINDOW = 6144  # max_window_size of Qwen's first chat models
_BAICHUAN_ANSWER = 2048  # max_new_tokens of Baichuan2-Chat

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
    chat_template: PromptFormat | None  # None: a base model
    tools: ToolSupport = field(default_factory=ToolSupport)

    @classmethod
    def of(cls, checkpoint: Checkpoint, tool_format: ToolFormat | None = None) -> "ModelText":
        """`tool_format`: the operator's choice.

        Raises CheckpointError when the tokenizer or the chat template cannot be used.
        """
        try:
            tokenizer = tokenizer_of(checkpoint)
            prompt_format = prompt_format_of(checkpoint, tokenizer)
        except _BROKEN_TEXT as exc:
            raise CheckpointError(
                f"The tokenizer of {checkpoint.path} is not usable: {exc}."
            ) from exc
        support = tool_support(prompt_format, checkpoint.chat_template, tool_format)
        return cls(tokenizer, prompt_format, support)


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
    config = checkpoint.tokenizer_config
    match checkpoint.tokenizer_files:
        case TiktokenFiles(ranks=ranks, extra_ranks=extra, special_tokens=special):
            return TiktokenTokenizer.from_files(
                ranks, special, extra_ranks=extra, eos_token="<|endoftext|>"
            )
        case MergesFiles(vocab=vocab, merges=merges, added_tokens=added):
            spec = merges_files.tokenizer_json(vocab, merges, config, added)
            return LibraryTokenizer.from_json(spec, config)
        case SentencePieceFile(model=model) as file:
            return SentencePieceTokenizer(
                model, appended=file.appended, control_ids=file.control_ids, prefix=file.prefix
            )
    if checkpoint.tokenizer_json is None:
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json")
    return LibraryTokenizer.from_json(checkpoint.tokenizer_json, config)


def prompt_format_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> PromptFormat | None:
    """The checkpoint's own template, else its family's format; None for a base model.

    Raises TemplateError, KeyError and the like where the files do not fit together.
    """
    if checkpoint.chat_template:
        return ChatTemplate(checkpoint.chat_template, tokenizer)
    generation = checkpoint.generation_config
    model_type = checkpoint.config.get("model_type")
    if model_type == "qwen" and generation.get("chat_format") == "chatml":
        return QwenFormat(tokenizer, int(generation.get("max_window_size", _QWEN_WINDOW)))
    if model_type == "baichuan" and "user_token_id" in generation:
        return BaichuanFormat(
            tokenizer,
            user_id=generation["user_token_id"],
            assistant_id=generation["assistant_token_id"],
            max_prompt_tokens=int(checkpoint.config["model_max_length"])
            - int(generation.get("max_new_tokens", _BAICHUAN_ANSWER)),
        )
    if model_type == "chatglm":
        is_third = "<|user|>" in tokenizer.special_tokens
        return (ChatGLM3Format if is_third else ChatGLM2Format)(tokenizer)
    return None


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
        tools=text.tools,
    )
