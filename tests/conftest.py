"""Fixtures shared by every test."""

from pathlib import Path

import pytest

from tests import real_models


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return real_models.smollm2()


@pytest.fixture(scope="session")
def qwen_coder_path() -> Path:
    return real_models.qwen_coder()
