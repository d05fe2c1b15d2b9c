"""What a user can cause, and one class for each.

Every message is one sentence that says what was found, what was expected and what to do; the command line prints it
without a traceback and exits with status 2. All are also `ValueError`, so that library users need not know our names.
"""


class NladvError(Exception):
    """Base of every error that a user's input can cause."""


class SpecError(NladvError, ValueError):
    """A parameter, a name or a run specification is not one we know or lies outside its range."""


class DataError(NladvError, ValueError):
    """Data are missing, damaged or not in the documented format."""


class UnsupportedNetwork(NladvError, ValueError):
    """A network that cannot be traced, linearized or measured faithfully."""


class RecordError(NladvError, ValueError):
    """A stored record or weight file cannot be read or does not fit its specification."""
