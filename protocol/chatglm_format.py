"""The prompts of ChatGLM2 (numbered rounds of plain text) and ChatGLM3 (role tokens).

Source: tokenization_chatglm.py of THUDM/chatglm2-6b (build_prompt) and THUDM/chatglm3-6b
(build_chat_input, build_single_message). Every prompt begins with [gMASK] sop. How ChatGLM3 is told
of tools, calls and results is in protocol/tools/chatglm3_prompt.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.conversation import Said, Turn, read_conversation
from protocol.prompt import TemplateError
from protocol.prompt_format import BuiltInFormat
from protocol.tokenizer import Tokenizer
from protocol.tools.chatglm3_prompt import system_text, with_calls_written

_PREFIX = ("[gMASK]", "sop")


class ChatGLM2Format(BuiltInFormat):
    """Implements protocol.prompt_format.PromptFormat."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises KeyError where the tokenizer is not ChatGLM's."""
        self._tokenizer = tokenizer
        self._prefix = [tokenizer.special_tokens[token] for token in _PREFIX]

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """A system text stands before the first round. Answers come one to a question."""
        conversation = read_conversation(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        if add_generation_prompt and conversation.last_role == "assistant":
            raise TemplateError("this model's chat format answers a message of the user only")
        rounds = [_round(i, turn) for i, turn in enumerate(conversation.turns, start=1)]
        text = "\n\n".join([conversation.system, *rounds] if conversation.system else rounds)
        return [*self._prefix, *self._tokenizer.encode(text, parse_special=False)]


def _round(number: int, turn: Turn) -> str:
    question, *answers = turn.messages
    if question.role != "user" or len(answers) > 1:
        raise TemplateError("this model's chat format needs one answer after each question")
    answer = answers[0].text if answers else ""
    return f"[Round {number}]\n\n问：{question.text}\n\n答：{answer}"


class ChatGLM3Format(BuiltInFormat):
    """Implements protocol.prompt_format.PromptFormat."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises KeyError where the tokenizer is not ChatGLM3's."""
        self._tokenizer = tokenizer
        self._prefix = [tokenizer.special_tokens[token] for token in _PREFIX]
        self._roles = {
            role: tokenizer.special_tokens[f"<|{role}|>"]
            for role in ("system", "user", "assistant", "observation")
        }

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """The line of a role and the text are encoded each for itself.

        Tools are told of at the end of the system text. Earlier calls and results are messages.
        """
        conversation = read_conversation(
            with_calls_written(messages),
            tools=None,  # have their place in the system text
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            roles=("user", "assistant", "observation"),
        )
        ids = list(self._prefix)
        system = system_text(conversation.system, tools) if tools else conversation.system
        if system is not None:
            ids += self._message(Said("system", system))
        for turn in conversation.turns:
            for said in turn.messages:
                ids += self._message(said)
        if add_generation_prompt:
            ids.append(self._roles["assistant"])
        return ids

    def _message(self, said: Said) -> list[int]:
        line, text = (
            self._tokenizer.encode(part, parse_special=False)
            for part in (f"{said.metadata}\n", said.text)
        )
        return [self._roles[said.role], *line, *text]
