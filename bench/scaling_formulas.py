"""How much each rank of a sharded loss sends, waits, keeps and computes: formulas in N, f, c and the number of ranks.

N counts the rows of one view on all ranks together. Bytes are those of the algorithms that gloo and NCCL use for large
messages: rings for all-gather and all-reduce, everyone to everyone for the agreement and the gradients. Each rank
receives what it sends.
"""

from __future__ import annotations

from dataclasses import dataclass

AGREEMENT_INTEGERS = 17
# Numbers per row that a backend's second pass adds up over ranks (`Shard.ROW_SCALARS`), 8 bytes each.
ROW_SCALARS = 5  # of the backends cpu and cuda; torch and triton have 4
TERMS = ("agreement", "rows", "best logits", "sums", "scalars", "gradients")
# Up to so many ranks, best logits and sums are gathered together (`distributed._FEW_RANKS`).
FEW_RANKS = 3
# Per message gloo announces, asks for and heads the data with 48 bytes each.
GLOO_MESSAGE_BYTES = 144
_GLOO_SEGMENT = 1 << 20


@dataclass(frozen=True)
class Shape:
    """One step: N rows per view on all ranks, f features, c codes, `world` ranks.

    Attributes:
        element: bytes of an embedding's element (2: bfloat16, 4: float32).
        row_scalars: how many numbers per row the backend's pass 2 adds up over ranks (`Shard.ROW_SCALARS`).
        block: codes come in blocks of this many, which are not cut (the next power of two above f, or 1).
    """

    N: int
    f: int
    c: int
    world: int
    element: int = 4
    row_scalars: int = ROW_SCALARS
    block: int = 1

    @property
    def codes_per_rank(self) -> int:
        """Of the rank that has most."""
        blocks = -(-self.c // self.block)
        return min(-(-blocks // self.world) * self.block, self.c)

    @property
    def logits_per_rank(self) -> int:
        return 2 * self.N * self.codes_per_rank


def hadamard(N: int, f: int, c: int, world: int, element: int = 4, row_scalars: int = ROW_SCALARS) -> Shape:
    """The shape for a HadamardDictionary, whose blocks have the next power of two above f codes."""
    return Shape(N, f, c, world, element, row_scalars, 1 << (f - 1).bit_length())


def sizes(shape: Shape) -> dict[str, int]:
    """Bytes of each collective's whole tensor: gathered, reduced, or exchanged by one rank, its own part included."""
    rows = -(-shape.N // shape.world) * shape.world  # shorter parts are padded to the longest
    few = shape.world <= FEW_RANKS
    return {
        "agreement": shape.world * AGREEMENT_INTEGERS * 8,
        "rows": 2 * rows * shape.f * shape.element,
        "best logits": 0 if few else 2 * shape.N * 8,
        "sums": 2 * 2 * shape.N * 8 * (shape.world if few else 1),
        "scalars": (2 * shape.N * shape.row_scalars + 1) * 8,
        "gradients": 2 * shape.N * shape.f * 4,
    }


def sent(shape: Shape) -> dict[str, float]:
    """Bytes that each rank sends in a step, forward and gradient, by term; nothing in it depends on c."""
    share = (shape.world - 1) / shape.world
    factor = {"best logits": 2, "sums": 1 if shape.world <= FEW_RANKS else 2, "scalars": 2}
    return {term: factor.get(term, 1) * share * size for term, size in sizes(shape).items()}


def sent_by_gloo(shape: Shape) -> float:
    """The same in all, with the headers of gloo's messages."""
    return sum(sent(shape).values()) + GLOO_MESSAGE_BYTES * gloo_messages(shape)


def gloo_messages(shape: Shape) -> int:
    """Messages that each rank sends: gloo cuts each part of a ring in two, and parts of an all-reduce at 1 MiB."""
    steps, found = shape.world - 1, 0
    for term, size in sizes(shape).items():
        if term in ("agreement", "gradients"):
            found += steps
        elif term == "rows":
            found += 4 * steps
        elif shape.world <= FEW_RANKS and term != "scalars":
            found += 2 * steps if term == "sums" else 0
        else:
            found += 2 * steps * max(2, -(-size // shape.world // _GLOO_SEGMENT))
    return found


def gloo_delays(shape: Shape) -> dict[str, int]:
    """One-way delays that follow each other in a step: each hop of gloo asks, then sends; both gathers run at once."""
    hop = 2 * (shape.world - 1)
    if shape.world == 1:
        return dict.fromkeys(TERMS, 0)
    best, sums = (0, hop) if shape.world <= FEW_RANKS else (2 * hop, 2 * hop)
    return {"agreement": 2, "rows": hop, "best logits": best, "sums": sums, "scalars": 2 * hop, "gradients": 2}


def mean_assignment_sent(shape: Shape) -> float:
    """Bytes that each rank sends in a call of `mean_assignment`: rows and sums of one view, and then all of p̄."""
    share = (shape.world - 1) / shape.world
    one_view = sizes(shape)
    return share * (one_view["agreement"] + one_view["rows"] / 2 + one_view["best logits"] + one_view["sums"]
                    + shape.world * shape.codes_per_rank * 4)  # fmt: skip


def memory(shape: Shape) -> dict[str, float]:
    """Bytes on each rank that grow with the rows of all ranks; a backend's own working memory comes on top."""
    rows = sizes(shape)
    return {
        "rows of all ranks": rows["rows"],
        "this range's share of the gradients": rows["gradients"],
        "the same in the order of ranks": rows["gradients"],
        "gradients received": rows["gradients"],
        "sums per row": rows["best logits"] + rows["sums"] + rows["scalars"],
    }


def alternatives(shape: Shape) -> dict[str, dict[str, float]]:
    """Other ways to the same loss: bytes each rank sends, logits it computes, bytes of p̄ that it holds.

    "rows stay": each rank takes its own rows against all codes, p̄ of both views is added up over ranks. "all of it":
    rows are gathered and every rank computes the whole loss.
    """
    share, numbers = (shape.world - 1) / shape.world, sizes(shape)
    own_rows = -(-shape.N // shape.world)
    return {
        "codes sharded (this library)": {"sent": sum(sent(shape).values()), "logits": shape.logits_per_rank, "held": 0},
        "rows stay, p̄ added up": {"sent": 2 * share * 2 * shape.c * 4, "logits": 2 * own_rows * shape.c,
                                  "held": 2 * shape.c * 4},
        "rows gathered, all of it on each rank": {"sent": share * numbers["rows"], "logits": 2 * shape.N * shape.c,
                                                  "held": 0},
    }  # fmt: skip
