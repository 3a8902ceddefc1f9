"""When a client that is refused should come again, in the headers that clients read."""

import math


def retry_headers(wait_s: float) -> dict[str, str]:
    """Whole seconds for all clients, and milliseconds for those of OpenAI's."""
    return {
        "retry-after": str(max(1, math.ceil(wait_s))),
        "retry-after-ms": str(max(1, math.ceil(wait_s * 1000))),
    }


def go_duration(seconds: float) -> str:
    """A time as Go and OpenAI's headers write it: 20ms, 1s, 1.5s, 6m0s, 1h0m0s; rounded up."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
