"""The errors that bad input raises: what was expected, what was found and where, what to change."""


class InputError(ValueError):
    """Bad input, reported before anything is compiled.

    Args:
        expected: what would have been accepted.
        got: what was found, with its place (file and row, config key, tensor name, shape).
        fix: what the user can change.
    """

    def __init__(self, expected: str, got: str, fix: str):
        super().__init__(f"expected: {expected}\n     got: {got}\n     fix: {fix}")
        self.expected, self.got, self.fix = expected, got, fix


class NotWrittenError(RuntimeError):
    """The disk took no more: full, read-only, or at a limit.  It says what is safe, in one line."""


class RowError(InputError):
    """A row of data without usable answers.

    It says something about that row only, so a caller may drop the row and count it.

    Args:
        reason: a short fixed text to count by, such as `empty completion`.
    """

    def __init__(self, reason: str, expected: str, got: str, fix: str):
        super().__init__(expected, got, fix)
        self.reason = reason
