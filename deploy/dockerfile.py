"""Reads a Dockerfile into stages of steps. Knows nothing of carrying them out."""

import re
import shlex
import string
from dataclasses import dataclass
from pathlib import Path

from dockerfile_parse import DockerfileParser

_FLAG = re.compile(r"--([\w-]+)=(\S+)\s+")
_OF_NO_STEP = frozenset(("LABEL", "VOLUME", "EXPOSE", "COMMENT"))


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a stage: `flags` are its leading --name=value, in order."""

    instruction: str
    value: str
    flags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    steps: tuple[Step, ...]


def read_stages(dockerfile: Path) -> dict[str, Stage]:
    """The stages by name, in the order of the file (which must be called Dockerfile)."""
    arguments: dict[str, str] = {}
    stages: dict[str, tuple[str, list[Step]]] = {}
    steps: list[Step] | None = None
    for line in DockerfileParser(str(dockerfile)).structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            base, _, name = string.Template(value).substitute(arguments).split()
            steps = []
            stages[name] = (base, steps)
        elif instruction == "ARG" and steps is None:
            arguments.update(assignments(value))
        elif instruction not in _OF_NO_STEP and steps is not None:
            steps.append(_step(instruction, value))
    return {name: Stage(name, base, tuple(steps)) for name, (base, steps) in stages.items()}


def _step(instruction: str, value: str) -> Step:
    flags = []
    while match := _FLAG.match(value):
        flags.append((match[1], match[2]))
        value = value[match.end() :]
    return Step(instruction, value, tuple(flags))


def assignments(value: str) -> dict[str, str]:
    """The NAME=value words of ENV and ARG."""
    return dict(word.split("=", 1) for word in shlex.split(value))
