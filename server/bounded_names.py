"""Names as label values: each one is a time series for ever, so only so many are told apart."""

OTHER = "other"


class BoundedNames:
    """The first `limit` names are themselves, all later ones are "other"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The label value for `name`."""
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(name)
        return name
