"""The one error of getting a model; its message is a sentence fit to be shown to a user."""


class PullError(Exception):
    """A model that could not be brought onto this machine."""
