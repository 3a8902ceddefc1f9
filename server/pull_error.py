"""The errors of getting a model; their messages are sentences fit to be shown to a user."""


class PullError(Exception):
    """A model that could not be brought onto this machine."""


class HubUnreachableError(PullError):
    """The hub gave no answer: a copy that is on this machine already may serve instead."""


def one_line(exc: BaseException) -> str:
    """The first line of an error's text, to end a sentence with."""
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0].rstrip(".")
