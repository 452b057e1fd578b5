"""The two ways in which a run can fail, apart from a bug."""


class InputError(ValueError):
    """What the user gave cannot work; its message says what was given and what would do. Exit code 2."""


class WorkError(RuntimeError):
    """The request was right but could not be carried out: an unreadable file, a full disk. Exit code 1."""
