"""The measurement of refusals, against the real application; what it measures is not judged."""

import pytest

from loadtest.client import Endpoint
from loadtest.key_timing import guesses, lines, measure
from server.config import ServerConfig
from tests.e2e.running_server import serve
from tests.server.small_app import small_state

KEY = "sk-right-0123456789"


def test_every_guess_is_wrong_and_as_its_name_says() -> None:
    found = guesses(KEY)
    assert KEY not in found.values()
    same = {n: sum(a == b for a, b in zip(k, KEY, strict=False)) for n, k in found.items()}
    assert same["nothing right"] == 0 and same["all but one right"] == len(KEY) - 1
    assert len(found["nothing right"]) == len(found["half right"]) == len(KEY)
    with pytest.raises(ValueError, match="too short"):
        guesses("abc")


def test_it_measures_refusals() -> None:
    with serve(small_state(ServerConfig(api_keys=(KEY,)))) as running:
        endpoint = Endpoint.of(f"{running.url}/v1")
        times = measure(endpoint, guesses(KEY), rounds=20)
        assert {len(seconds) for seconds in times.values()} == {20}
        with pytest.raises(RuntimeError, match="no refusal"):
            measure(endpoint, {"right": KEY}, rounds=1)
    told = lines(times)
    assert len(told) == 6 and told[0].endswith("+0.00 us (+0.0 standard errors)")
