"""The terminal chat: reads queries, shows answers as they arrive, keeps the conversation.

Ctrl-C while an answer runs stops the answer, here and on the server, and the conversation stays as
it was; at the prompt it leaves. An error of the server is shown and the session goes on.
"""

import re
from typing import Any

from rich.console import Console

from server.chat_client import ChatClient, ChatError, Delta, Message
from server.chat_commands import HELP, Command, parse_assignments, parse_command

_PROMPT = "User> "
# Control characters but newline and tab: an answer must not be able to drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# The client's own fields: setting them would break the session.
_RESERVED = frozenset({"model", "messages", "stream", "n"})


class ChatSession:
    """One conversation in one terminal."""

    def __init__(
        self,
        client: ChatClient,
        model: str,
        *,
        system: str | None = None,
        seed: int = 1234,
        console: Console | None = None,
    ) -> None:
        self._client = client
        self._model = model
        self._system = [Message("system", system)] if system else []
        self._seed = seed
        self._history: list[Message] = []
        self._parameters: dict[str, Any] = {}
        self._console = console or Console(highlight=False, markup=False, soft_wrap=True)

    def run(self) -> None:
        """Loop until the user leaves."""
        self._enable_line_editing()
        self._console.print(f"{self._model} at {self._client.url}; :help for the commands")
        while True:
            try:
                line = input(_PROMPT).strip()
            except UnicodeDecodeError:
                self._warn("the input is not valid UTF-8")
                continue
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            command = parse_command(line)
            if command is not None and command.name == "exit":
                return
            if not line:
                self._warn("the query is empty")
            elif command is not None:
                self._obey(command)
            else:
                self._ask(line)

    def _enable_line_editing(self) -> None:
        try:
            import readline  # noqa: F401  # importing it is what gives input() its history
        except ImportError:
            self._warn("this Python has no readline: no line editing")

    def _ask(self, query: str) -> None:
        question = Message("user", query)
        parameters = {"seed": self._seed, **self._parameters}
        messages = [*self._system, *self._history, question]
        stream = self._client.stream(self._model, messages, parameters)
        answer: list[str] = []
        self._console.print(f"{self._model}: ", end="", style="bold")
        try:
            for delta in stream:
                self._show(delta)
                if not delta.is_reasoning:
                    answer.append(delta.text)
        except KeyboardInterrupt:
            self._console.print()
            self._warn("the answer was interrupted")
        except ChatError as exc:
            self._console.print()
            self._warn(str(exc))
        else:
            self._console.print()
            self._history += [question, Message("assistant", "".join(answer))]
        finally:
            stream.close()

    def _show(self, delta: Delta) -> None:
        text = _CONTROL.sub("", delta.text)
        self._console.print(text, end="", style="dim" if delta.is_reasoning else None)

    def _obey(self, command: Command) -> None:
        match command.name:
            case "help":
                self._console.print(HELP)
            case "clear":
                self._console.clear()
            case "clear-history":
                self._history.clear()
                self._console.print("the conversation is forgotten")
            case "history":
                self._show_history()
            case "seed":
                self._set_seed(command.argument)
            case "conf":
                self._set_parameters(command.argument)
            case "reset":
                self._parameters.clear()
                self._show_parameters()
            case "exit":
                raise AssertionError("run() handles exit")

    def _show_history(self) -> None:
        if not self._history:
            self._console.print("the conversation is empty")
        for message in self._history:
            self._console.print(f"{message.role}: {_CONTROL.sub('', message.content)}")

    def _set_seed(self, argument: str) -> None:
        if argument:
            try:
                self._seed = int(argument)
            except ValueError:
                self._warn(f"the seed must be a whole number, not {argument!r}")
                return
        self._console.print(f"seed: {self._seed}")

    def _set_parameters(self, argument: str) -> None:
        try:
            assignments = parse_assignments(argument)
        except ValueError as exc:
            self._warn(str(exc))
            return
        if reserved := _RESERVED & assignments.keys():
            self._warn(f"{', '.join(sorted(reserved))} cannot be set here")
            return
        self._parameters.update(assignments)
        self._show_parameters()

    def _show_parameters(self) -> None:
        for key, value in {"seed": self._seed, **self._parameters}.items():
            self._console.print(f"{key} = {value!r}")

    def _warn(self, text: str) -> None:
        self._console.print(f"[error] {_CONTROL.sub('', text)}", style="red")
