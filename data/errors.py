"""What can be wrong with raw data: a file that is not in its format, too much missing, an item that cannot be used."""


class DataError(Exception):
    """Raw data cannot be built from; the text says what was found where, what was expected and what to do."""


class FormatError(DataError):
    """A raw file is not what its format says."""

    def __init__(self, where: str, found: object, expected: str, do: str):
        """Words the error.

        Args:
            where: `file:line` or `file`.
            found: what stands there; long text is cut.
            expected: what the format asks for.
            do: what the user can do about it.
        """
        found = str(found)
        if len(found) > 160:
            found = f"{found[:160]}… ({len(found)} characters)"
        super().__init__(f"{where}: found {found}, expected {expected}; {do}")
        self.where = where
        self._words = where, found, expected, do

    def __reduce__(self):
        return type(self), self._words  # an error may come from another process


class RepeatedId(FormatError):
    """An id stands twice where it may stand once."""


class Unusable(Exception):
    """A picture, box or example cannot be used; its text is the reason, in few words. It is skipped and reported."""


def fail(error: DataError) -> None:
    """Raises the error: what a reader does with one unless it is told to go on and report it instead."""
    raise error
