"""What is measured: problem sizes, the implementations that take turns on each, and the targets of the library.

A new `Case` in `CASES` or `FUNCTION_CASES`, or in `bench.gpu.rows` for GPUs, with its targets, is all that a new
benchmark takes: timing, memory, JSON, tables and plot follow from these lists. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.targets import LIBRARY, Target

ONE_THREAD = "one_thread"
CHUNKED = "chunked"
TITLES = {
    LIBRARY: "cplearn-kernels",
    ONE_THREAD: "cplearn-kernels, one thread",
    "eager": "authors' formula, eager",
    "tidy": "tidy formula, eager",
    "compiled": "tidy formula, torch.compile",
    CHUNKED: "backend torch",
}
# The formulas in PyTorch, which hold the whole dictionary, and their precision. "eager" is the authors'.
FORMULAS = {"eager": "float32", "eager tf32": "tf32", "eager bf16": "bf16", "tidy": "float32", "compiled": "float32",
            "compiled bf16": "bf16"}  # fmt: skip
AGAINST_FORMULAS = (LIBRARY, "eager", "tidy", "compiled")
ALL = (LIBRARY, ONE_THREAD, *AGAINST_FORMULAS[1:])


@dataclass(frozen=True)
class Case:
    """One problem and what is measured on it.

    Attributes:
        n: rows per view.
        num_features: f, the length of an embedding.
        num_codes: c, the number of codes.
        implementations: what takes turns; on a CPU keys of `TITLES`, the library first, on a GPU formulas alone.
        targets: of the library, or on a GPU of its backends.
        dictionary: "hadamard", "rademacher" or "dense".
        function: the library's function; "loss_alone": without gradients, "loss_graph": replayed as a CUDA graph.
        full_only: measured only under `--benchmark-full`.
    """

    n: int
    num_features: int
    num_codes: int
    implementations: tuple[str, ...] = (LIBRARY,)
    targets: tuple[Target, ...] = ()
    dictionary: str = "hadamard"
    function: str = "cplearn_loss"
    full_only: bool = False

    @property
    def name(self) -> str:
        """The case's identity in test ids, JSON and targets, e.g. `hadamard-n64-f128-c16384`."""
        of = "" if self.function == "cplearn_loss" else f"{self.function}-"
        return f"{of}{self.dictionary}-n{self.n}-f{self.num_features}-c{self.num_codes}"

    @property
    def logits(self) -> int:
        """Logits of one call: n rows of two views against c codes, of one for a function of one batch."""
        return (2 if "loss" in self.function else 1) * self.n * self.num_codes

    def shrunk(self) -> Case:
        """The same case small enough for the check without `--benchmark`: f stays, n and c shrink to odd sizes."""
        num_codes = min(max(self.num_codes >> 6, 100), (1 << 14) + (self.num_codes >> 12))
        return replace(self, n=(self.n >> 3) + 3, num_codes=num_codes + 1)


def _faster(**times: float) -> tuple[Target, ...]:
    return tuple(Target("speed", at_least, against) for against, at_least in times.items())


CASES = (
    Case(64, 2048, 1 << 14, AGAINST_FORMULAS, _faster(eager=25.0)),
    Case(64, 2048, 1 << 16, ALL, (*_faster(eager=80.0, compiled=60.0, one_thread=1.8), Target("rate", 0.9e9))),
    Case(64, 128, 1 << 14, AGAINST_FORMULAS, _faster(eager=25.0, compiled=6.0)),
    Case(256, 128, 1 << 14, AGAINST_FORMULAS),
    Case(256, 128, 1 << 17, ALL, (*_faster(eager=80.0, compiled=12.0, one_thread=1.8), Target("rate", 1.2e9))),
    # The smallest useful call: overhead is most of it.
    Case(64, 128, 1 << 10, AGAINST_FORMULAS, _faster(tidy=1.0)),
    Case(64, 2048, 1 << 16, (LIBRARY, "tidy"), _faster(tidy=1.0), dictionary="rademacher"),
    Case(64, 128, 1 << 16, (LIBRARY, "tidy"), _faster(tidy=1.5), dictionary="rademacher"),
    # Time and memory against c. W alone would take 8.6 GB (f=128) at c = 2**24, so these cases have the library only.
    Case(64, 128, 1 << 16, AGAINST_FORMULAS),
    Case(64, 128, 1 << 18),
    Case(64, 128, 1 << 20, targets=(Target("memory", 32.0),)),
    Case(64, 128, 1 << 22),
    Case(64, 128, 1 << 24, targets=(Target("memory", 32.0),)),
    Case(64, 2048, 1 << 20, targets=(Target("memory", 200.0, "hadamard-n64-f2048-c16384"),)),
    Case(64, 128, 1 << 20, dictionary="rademacher"),
    # Minutes.
    Case(64, 128, 1 << 26, full_only=True),
)

# n = 64, f = 128, a Hadamard dictionary; the library alone, all numbers of codes in turns.
TIME_PER_CODE = {"num_codes": [1 << log2 for log2 in range(14, 25, 2)], "within": 0.10}

# The loss without gradients, and the functions of one batch; p has n c numbers, hence the smaller c.
_FUNCTIONS = ("loss_alone", "projector_logsumexp", "expected_code", "mean_assignment", "assign", "projector_softmax")
FUNCTION_CASES = tuple(
    Case(64, f, 1 << (12 if function == "projector_softmax" else 16), (LIBRARY, CHUNKED), function=function)
    for f in (128, 2048)
    for function in _FUNCTIONS
)


def case_named(name: str) -> Case:
    """The case called `name`; a `ValueError` lists the names there are."""
    for case in (*CASES, *FUNCTION_CASES):
        if case.name == name:
            return case
    raise ValueError(f"unknown case {name!r}; expected one of {', '.join(case.name for case in CASES)}")
