"""The prompt of Baichuan2-Chat: a marker before each message, and nothing between them.

Source: build_chat_input in generation_utils.py of baichuan-inc/Baichuan2-7B-Chat.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.conversation import Turn, newest_turns, read_conversation
from protocol.prompt_format import BuiltInFormat
from protocol.tokenizer import Tokenizer


class BaichuanFormat(BuiltInFormat):
    """Implements protocol.prompt_format.PromptFormat."""

    def __init__(
        self, tokenizer: Tokenizer, *, user_id: int, assistant_id: int, max_prompt_tokens: int
    ) -> None:
        """`user_id`, `assistant_id`: the markers. Raises ValueError where text could be them."""
        for marker in (user_id, assistant_id):
            if not tokenizer.is_special(marker):
                raise ValueError(f"the role marker {marker} is not a control token")
        self._tokenizer = tokenizer
        self._markers = {"user": user_id, "assistant": assistant_id}
        self._max_prompt_tokens = max_prompt_tokens

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Older turns that do not fit are left out; the system text and the last turn never are."""
        conversation = read_conversation(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        ids = self._tokenizer.encode(conversation.system or "", parse_special=False)
        *history, last = map(self._turn, conversation.turns)
        lengths = [len(turn) for turn in history]
        room = self._max_prompt_tokens - len(ids) - len(last)
        for kept in newest_turns(conversation.turns[:-1], lengths, room):
            ids += history[kept]
        ids += last
        if add_generation_prompt and conversation.last_role != "assistant":
            ids.append(self._markers["assistant"])
        return ids

    def _turn(self, turn: Turn) -> list[int]:
        ids: list[int] = []
        for said in turn.messages:
            ids.append(self._markers[said.role])
            ids += self._tokenizer.encode(said.text, parse_special=False)
        return ids
