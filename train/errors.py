"""The two ways a run ends early on purpose; both are printed as one sentence, without a traceback."""


class InputError(Exception):
    """Something given by the user cannot be used: an option, a path, a data file, a checkpoint (exit status 2)."""

    exit_status = 2


class Diverged(Exception):
    """Training cannot go on because the loss or a gradient is not finite any more (exit status 1)."""

    exit_status = 1
