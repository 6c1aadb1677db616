"""The errors of raw data: a wrong file, too much that is missing, an item that cannot be used."""


class RawDataError(Exception):
    """Raw data from which nothing can be built.

    The message says what was found, where, what was expected and what to do.
    """


class WorkerError(Exception):
    """A worker process has ended in the middle of its work."""


class FormatError(RawDataError):
    """A raw file that violates its format."""

    def __init__(self, where: str, found: object, expected: str, do: str):
        """Composes the message.

        Args:
            where: `file:line` or `file`.
            found: the offending content; long text is cut.
            expected: what the format requires.
            do: what fixes it, in the imperative.
        """
        found = str(found)
        if len(found) > 160:
            found = f"{found[:160]}… ({len(found)} characters)"
        super().__init__(f"{where}: found {found}, expected {expected}; {do}")
        self.where = where
        self._arguments = where, found, expected, do

    def __reduce__(self):
        return type(self), self._arguments  # to be unpickled when it comes from another process


class RepeatedId(FormatError):
    """An id that occurs twice where it must be unique."""


class Unusable(Exception):
    """A picture, box or example that cannot be used and is skipped; the message is the reason in a few words."""


def fail(error: RawDataError) -> None:
    """Raises the error: the default error handler of readers that can also report errors and continue."""
    raise error
