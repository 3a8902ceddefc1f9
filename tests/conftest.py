"""Fixtures shared by every test."""

from pathlib import Path

import pytest
from hypothesis import settings

from engine.process import set_thread_policy
from tests import real_models

set_thread_policy()
settings.register_profile("default", deadline=None)  # a slow machine is not a failure
settings.load_profile("default")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return real_models.smollm2()


@pytest.fixture(scope="session")
def qwen_coder_path() -> Path:
    return real_models.qwen_coder()


@pytest.fixture(scope="session")
def qwen_tiktoken_path() -> Path:
    return real_models.qwen_tiktoken()
