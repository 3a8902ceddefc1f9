"""ChatML as the first Qwen chat models were trained with it (chat_format "chatml").

Source: make_context in qwen_generation_utils.py and openai_api.py of QwenLM/Qwen. Differs from the
later templates: role, newline and content are encoded separately, the newline stands between
messages, and there is always a system message.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.conversation import Said, newest_turns, read_conversation
from protocol.prompt_format import BuiltInFormat
from protocol.tokenizer import Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."


class QwenFormat(BuiltInFormat):
    """Implements protocol.prompt_format.PromptFormat."""

    def __init__(self, tokenizer: Tokenizer, max_window_size: int) -> None:
        """`max_window_size`: the system message and the kept history are fewer tokens than this.

        Raises:
            KeyError: the tokenizer has no ChatML tokens.
        """
        self._tokenizer = tokenizer
        self._max_window_size = max_window_size
        self._start = tokenizer.special_tokens["<|im_start|>"]
        self._end = tokenizer.special_tokens["<|im_end|>"]
        self._newline = tokenizer.encode("\n", parse_special=False)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Older turns that do not fit are left out; the last one never is."""
        conversation = read_conversation(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        system = DEFAULT_SYSTEM if conversation.system is None else conversation.system
        ids = self._block("system", _trimmed(system))
        *history, _ = conversation.turns
        *blocks, last = (
            [i for said in turn.messages for i in self._message(said)]
            for turn in conversation.turns
        )
        room = self._max_window_size - len(ids) - 1
        for kept in newest_turns(history, [len(block) for block in blocks], room):
            ids += blocks[kept]
        if continue_final_message:
            *before, final = conversation.turns[-1].messages
            last = [i for said in before for i in self._message(said)]
            last += [*self._newline, *self._opening("assistant")]
            last += self._plain(final.text.lstrip("\n"))  # its end is where the model goes on
        ids += last
        if add_generation_prompt:
            ids += [*self._newline, *self._opening("assistant")]
        return ids

    def _message(self, said: Said) -> list[int]:
        return [*self._newline, *self._block(said.role, _trimmed(said.text))]

    def _block(self, role: str, text: str) -> list[int]:
        return [*self._opening(role), *self._plain(text), self._end]

    def _opening(self, role: str) -> list[int]:
        return [self._start, *self._plain(role), *self._newline]

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False)


def _trimmed(text: str) -> str:
    """As openai_api.py does, because the training data was."""
    return text.lstrip("\n").rstrip()
