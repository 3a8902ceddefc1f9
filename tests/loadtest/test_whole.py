"""The load from outside runs against the real command."""

from pathlib import Path

import pytest

from loadtest.whole import measure


@pytest.mark.real_model
def test_measures_the_real_server(smollm2_path: Path) -> None:
    result = measure(str(smollm2_path), streams=2, num_tokens=5, busy=1)
    assert 0 < result.ready_s < result.first_token_s
    assert result.tokens_per_s > 0


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        measure(str(tmp_path), streams=1, num_tokens=1, busy=0)
