from collections.abc import Iterator

import pytest

from tests.engine import openmp


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The compiled kernels compute with one; test_compiled_forward.py has a test with several."""
    with openmp.num_threads(1):
        yield
