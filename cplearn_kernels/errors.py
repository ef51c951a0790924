"""The errors of this library that callers may want to catch by name."""


class RankFailure(RuntimeError):
    """A rank reported an error, died or did not come; the sentence names it. Raised on every rank that is left."""


class Disagreement(ValueError):
    """Ranks passed different arguments; raised on every rank, with the same sentence."""
