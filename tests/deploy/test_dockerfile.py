"""The Dockerfile is what hadolint accepts and what deploy/rehearse.py can carry out, and it copies
all that the wheel is made of. That the image works is for the rehearsal to show.
"""

import json
import tomllib
from pathlib import Path

import pytest

from deploy.dockerfile import Stage, read_stages
from tests.deploy.options import VARIABLES
from tests.deploy.tools import ROOT, fails, installed, run

STAGES = read_stages(ROOT / "Dockerfile")


def values(stage: Stage, instruction: str) -> list[str]:
    return [step.value for step in stage.steps if step.instruction == instruction]


def test_hadolint_has_nothing_to_say() -> None:
    assert run(installed("hadolint"), "Dockerfile") == ""


def test_hadolint_would_say_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN apt-get install gcc\n")
    assert "DL3006" in fails(installed("hadolint"), bad)


def test_the_default_is_the_cpu_image() -> None:
    assert list(STAGES) == ["wheel", "base", "cuda", "cpu"]


@pytest.mark.parametrize("name", ["cuda", "cpu"])
def test_images_end_as_a_numbered_user_without_compilers(name: str) -> None:
    stage = STAGES[name]
    assert stage.base == "base"
    assert stage.steps[-1].instruction == "USER"
    assert stage.steps[-1].value == "10001:10001"
    commands = " ".join(values(stage, "RUN") + values(STAGES["base"], "RUN"))
    assert "g++" not in commands
    assert "libgomp1" in commands


def test_the_wheel_is_made_of_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {word for value in values(STAGES["wheel"], "COPY") for word in value.split()[:-1]}
    assert {package.removesuffix("*") for package in packages} <= copied
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE"} <= copied


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}
    copied = {word for value in values(STAGES["wheel"], "COPY") for word in value.split()[:-1]}
    assert kept == copied
    assert "*" in lines


@pytest.mark.parametrize("name", ["cuda", "cpu"])
def test_torch_is_the_makefiles(name: str) -> None:
    (line,) = (text for text in (ROOT / "Makefile").read_text().splitlines() if "TORCH  ?=" in text)
    (argument,) = values(STAGES[name], "ARG")
    assert argument.removeprefix('TORCH="').split()[0].rstrip('"') == line.split()[-1]
    assert ("/whl/cpu" in argument) == (name == "cpu")


def test_it_starts_and_is_checked_without_a_shell() -> None:
    base = STAGES["base"]
    assert [json.loads(value) for value in values(base, "ENTRYPOINT")] == [
        ["tini", "--", "qwen-serve"]
    ]
    assert [json.loads(value) for value in values(base, "CMD")] == [["serve"]]
    (check,) = (step for step in base.steps if step.instruction == "HEALTHCHECK")
    assert "/readyz" in json.loads(check.value.removeprefix("CMD "))[-1]
    assert {"start-period", "start-interval"} <= {name for name, _ in check.flags}


def test_variables_are_options() -> None:
    words = " ".join(value for stage in STAGES.values() for value in values(stage, "ENV")).split()
    ours = {word.partition("=")[0] for word in words if word.startswith("QWEN_SERVE_")}
    assert "QWEN_SERVE_HOST" in ours
    assert ours <= VARIABLES
