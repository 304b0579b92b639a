"""The families of failure, each with an owner and a hint.

Whoever meets one at the edge (CLI, control API, log) prints what happened and what to do about it:
`str(error)` is the first, `error.hint` the second.
"""


class MetashimError(Exception):
    """Any failure that metashim foresees. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class ConfigError(MetashimError):
    """A setting is wrong. Owner: who wrote the configuration file."""

    exit_code = 3


class InputError(MetashimError):
    """An operator's argument or document is wrong; nothing was changed. Owner: the operator."""

    exit_code = 4


class NotFoundError(MetashimError):
    """The instance or tap that was named is not known. Owner: the operator."""

    exit_code = 5


class ConflictError(MetashimError):
    """What was asked for contradicts what is there; nothing was changed. Owner: the operator."""

    exit_code = 6


class KernelError(MetashimError):
    """The kernel refused. Owner: the host. `errno` is what it said (0: not a system call)."""

    exit_code = 7

    def __init__(self, what: str, hint: str = "", errno: int = 0) -> None:
        super().__init__(what, hint)
        self.errno = errno


class StoreError(MetashimError):
    """The store cannot be read or written (full, read-only, locked, damaged). Owner: the host."""

    exit_code = 8


class UnreachableError(MetashimError):
    """The agent does not answer on its socket. Owner: the host."""

    exit_code = 9


class BackendError(MetashimError):
    """A backend gave no whole answer. Owner: who runs the backend.

    `sent` is false where the request provably never reached it: none of its bytes were taken by the other end.
    `late`: it was silent for longer than it may be.
    """

    def __init__(self, what: str, *, sent: bool, late: bool = False) -> None:
        super().__init__(what)
        self.sent = sent
        self.late = late
