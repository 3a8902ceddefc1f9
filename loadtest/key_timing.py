"""Whether the time of a refusal tells about a key: `python -m loadtest.key_timing --key KEY`.

Sends wrong keys to a running server, one after the other in a random order: some share nothing
with the right one, some all but its last character. If the comparison stopped at the first
difference the latter would take longer. Prints medians, and the difference of each group from the
first in standard errors; below 3 nothing is to be seen.
"""

import argparse
import random
import socket
import statistics
import time
from collections.abc import Mapping, Sequence

from loadtest.client import Endpoint

_TRIMMED = 0.1  # of each group, the slowest: what the machine did meanwhile


def guesses(key: str) -> dict[str, str]:
    """Wrong keys by how much of the right one they have. Raises ValueError for a short key."""
    if len(key) < 8:
        raise ValueError("the key is too short to tell guesses apart")
    half = len(key) // 2
    return {
        "nothing right": _other(key),
        "half right": key[:half] + _other(key[half:]),
        "all but one right": key[:-1] + _other(key[-1]),
        "one too many": key + "0",
        "one too few": key[:-1],
        "a hundred times as long": _other(key) * 100,
    }


def _other(text: str) -> str:
    """Of the same length, and different everywhere."""
    return "".join("b" if character == "a" else "a" for character in text)


def measure(endpoint: Endpoint, keys: Mapping[str, str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each refusal, by the kind of key, over one connection.

    Raises RuntimeError for an answer that is no refusal.
    """
    times: dict[str, list[float]] = {name: [] for name in keys}
    generator = random.Random(0)
    with socket.create_connection((endpoint.host, endpoint.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            for name in generator.sample(list(keys), len(keys)):
                request = (
                    f"GET {endpoint.prefix}/models HTTP/1.1\r\nhost: x\r\n"
                    f"authorization: Bearer {keys[name]}\r\n\r\n"
                ).encode()
                started = time.perf_counter()
                connection.sendall(request)
                answer = _read(connection)
                times[name].append(time.perf_counter() - started)
                if not answer.startswith(b"HTTP/1.1 401 "):
                    raise RuntimeError(f"{name}: {answer[:60]!r} is no refusal")
    return times


def _read(connection: socket.socket) -> bytes:
    """One answer with a content-length. Raises RuntimeError where the server closes."""
    data = b""
    while True:
        head, separator, body = data.partition(b"\r\n\r\n")
        if separator:
            (length,) = (
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            if len(body) >= length:
                return data
        if not (more := connection.recv(1 << 16)):
            raise RuntimeError("the server has closed the connection")
        data += more


def lines(times: Mapping[str, Sequence[float]]) -> list[str]:
    """For people."""
    kept = {name: sorted(all_of)[: -int(_TRIMMED * len(all_of))] for name, all_of in times.items()}
    first, *_ = kept.values()
    told = []
    for name, seconds in kept.items():
        squares = [statistics.variance(group) / len(group) for group in (first, seconds)]
        error = sum(squares) ** 0.5
        difference = statistics.mean(seconds) - statistics.mean(first)
        told.append(
            f"{name}: median {1e6 * statistics.median(seconds):.1f} us, "
            f"{1e6 * difference:+.2f} us ({difference / error:+.1f} standard errors)"
        )
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.key_timing", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", required=True, help="the right one")
    parser.add_argument("--rounds", type=int, default=20_000)
    args = parser.parse_args(argv)
    print("\n".join(lines(measure(Endpoint.of(args.url), guesses(args.key), args.rounds))))


if __name__ == "__main__":
    main()
