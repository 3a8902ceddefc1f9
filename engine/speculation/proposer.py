"""The seam between speculation and where drafts come from: earlier text, or a smaller model."""

from collections.abc import Sequence as Items
from typing import Protocol

from engine.sequence import Sequence
from engine.speculation.planner import Offer


class Proposer(Protocol):
    """Makes drafts. Each step it is first asked what it could do, then for what was chosen."""

    def prepare(self, sequences: Items[Sequence]) -> None:
        """Called ahead of the offers of a step; `sequences` are those of the step."""
        ...

    def offer(self, sequence: Sequence, max_drafts: int) -> Offer:
        """How likely each of up to `max_drafts` drafts is accepted; empty where it has none."""
        ...

    def seconds(self, num_sequences: int, num_drafts: int) -> float:
        """What it takes to make `num_drafts` drafts for each of so many sequences."""
        ...

    def draft(self, sequences: Items[Sequence], counts: Items[int]) -> list[list[int]]:
        """Drafts for each sequence, at most as many as its count, which it has blocks for."""
        ...

    def declined(self) -> None:
        """It made offers, and none was worth it in this step."""
        ...
