"""The one error that bad input raises: what was expected, what was found and where, what to
change."""


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
