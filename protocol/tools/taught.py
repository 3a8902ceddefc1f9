"""What is left of a conversation once its tools, calls and results are written out as text.

For models whose prompt format has no place for them; written by react_prompt, qwen_agent_prompt and
hermes_prompt.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TaughtPrompt:
    """Messages that a prompt format without tools understands.

    `continues`: the last one is the assistant's and is to be continued.
    """

    messages: list[dict[str, Any]]
    continues: bool
