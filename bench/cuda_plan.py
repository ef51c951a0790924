"""What a call of cplearn_loss with gradients launches on the cuda backend, and the memory it takes.

Mirrors csrc/cuda/problem.cpp and functions.cpp, so that bounds can be counted without the compiled core; the tests
compare the bytes with those that the core itself counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu_rates import Gpu

SPAN_CODES = SPAN_PRODUCTS = 1 << 22  # cplearn_kernels/backends/launch.py
MOST_WAVES, MOST_GROUPS, PRIOR_PARTS = 4, 32, 8192  # problem.cpp, rows.h


@dataclass(frozen=True)
class Cut:
    """Blocks of codes, or rows, in `parts` ranges of `size`."""

    parts: int
    size: int


def even_cut(count: int, blocks_per_part: int, places: int) -> Cut:
    """As problem.cpp: the cut that fills the device's places for blocks of threads best; of about equals, the coarsest."""
    best, best_use = Cut(1, count), 0.0
    for wanted in range(1, min(count, max(1, MOST_WAVES * places // blocks_per_part), 65535) + 1):
        size = -(-count // wanted)
        parts = -(-count // size)
        waves = -(-parts * blocks_per_part // places)
        use = count * blocks_per_part / (waves * places * size)
        if use > 1.03 * best_use:
            best, best_use = Cut(parts, size), use
    return best


@dataclass(frozen=True)
class Plan:
    """One call.

    Attributes:
        log2_block: of the Hadamard blocks; 0 for independent codes.
        block, team: codes of a tile, threads that work on it.
        total: rows of both views.
        width: numbers of a prepared row.
        spans, columns: spans of codes, codes of the longest one rounded up to whole blocks.
        best, sums: how the blocks of a span are cut in pass 1 and for the weighted sums.
        column_splits: into how many parts the rows of a view are cut for the column sums.
        product_splits: how the codes are cut in the product with weights.
        bytes: of working memory.
        zeros: bytes of it that are set to zero.
    """

    log2_block: int
    block: int
    team: int
    n: int
    f: int
    c: int
    width: int
    spans: int
    columns: int
    best: Cut
    sums: Cut
    column_splits: int
    product_splits: int
    bytes: int
    zeros: int

    @property
    def total(self) -> int:
        return 2 * self.n

    @property
    def sum_rows(self) -> int:
        """Rows for which weights and sums have room: whole operands of the tensor cores for independent codes."""
        return self.total if self.log2_block else -(-self.total // 16) * 16

    @property
    def products(self) -> int:
        """Products of all rows with all codes on the tensor cores: a span's are kept when there is no other."""
        return 0 if self.log2_block else (3 if self.spans == 1 else 4)

    def launches(self) -> list[tuple[str, int]]:
        """(kernel, how often), in the order of the first time; `fill`, `copy` and `scale_gradient` are PyTorch's
        and the driver's."""
        signs = [("block_signs", 1)] if self.log2_block else [("code_bits", 1), ("sign_product", 1)]
        again = self.spans if self.spans > 1 else 0
        times: dict[str, int] = {}

        def add(name: str, count: int) -> None:
            if count:
                times[name] = times.get(name, 0) + count

        add("prepare_rows" if self.log2_block else "prepare_halves", 1)
        add("fill", 1)
        for name, _ in signs:
            add(name, self.spans)
        if not self.log2_block:
            add("transposed_bits", self.spans + again)
        add("best_codes", self.spans)
        add("merge_best", self.spans)
        for name, _ in signs:
            add(name, again)
        for name in ("column_sums", "finish_columns", "weighted_codes"):
            add(name, self.spans)
        if not self.log2_block:
            add("add_sign_product", self.spans)
        for name in ("finish_rows", "finish_sums", "finish_loss"):
            add(name, 1)
        add("copy", 3)  # the three results of the operator
        add("scale_gradient", 4)  # upstream times each view's gradient, and the cast to its dtype
        return list(times.items())


def plan(
    gpu: Gpu, dictionary: str, n: int, f: int, c: int, spans: tuple[int, int] = (SPAN_CODES, SPAN_PRODUCTS)
) -> Plan:
    """The plan of a loss with gradients under reverse KL; `spans`: most codes, most products of a span."""
    log2_block = (f - 1).bit_length() if dictionary == "hadamard" and f > 32 else 0
    block, team = (1 << log2_block, 1 << (log2_block - 5)) if log2_block else (128, 4)
    total, stored = 2 * n, not log2_block
    most = min(spans[0], spans[1] // total) if stored else spans[0]
    most = max(most // block, 1) * block
    span = min(most, c)
    columns = -(-span // block) * block
    blocks = columns // block
    parts_of_team = max(team // 32, 1)
    # Rows, or blocks of codes, that a block of threads takes in pass 1 and the column sums; rows in the weighted sums.
    threads = max(128, team)
    best_rows, best_places = threads // team, gpu.processors * (512 // threads)
    weighted_threads = max(128, team if stored or log2_block == 13 else 2 * team)
    room = 256 if stored or log2_block == 10 else 384
    weighted_places = gpu.processors * max(1, room // weighted_threads)

    best = even_cut(blocks, -(-total // best_rows), best_places)
    sums = even_cut(blocks, -(-total // (weighted_threads // team)), weighted_places)
    column_splits = even_cut(n, -(-blocks // best_rows) * 2, best_places).parts

    used = 0

    def take(size: int, count: int) -> None:
        nonlocal used
        used += -(-size * count // 256) * 256

    for size in (4, 4, 4, 8, 4):  # RowState
        take(size, total)
    width = -(-f // 128) * 128 if stored else block
    sum_rows = -(-total // 16) * 16 if stored else total
    if stored:
        for size, count in ((2, sum_rows * width), (2, sum_rows * width), (4, total), (4, columns * (width // 32)),
                            (4, total * columns)):  # fmt: skip
            take(size, count)
    else:
        take(4, total * width), take(4, columns // 32)
    take(4, column_splits * 2 * columns), take(4, 2 * columns)
    product_splits = 1
    if stored:
        tiles, groups = -(-2 * sum_rows // 64) * -(-f // 128), columns // 128
        product_splits = min(max(-(-2 * gpu.processors // tiles), -(-groups // MOST_GROUPS)), groups)
        for size, count in ((4, f * (columns // 32)), (2, 2 * sum_rows * columns), (2, 2 * sum_rows * columns),
                            (4, 2 * sum_rows * (columns // 128))):  # fmt: skip
            take(size, count)
    sum_splits, sum_width = (product_splits, f) if stored else (sums.parts, width)
    scalars, summed = PRIOR_PARTS + 3 * sums.parts * parts_of_team * total, sum_splits * 2 * sum_rows * sum_width
    zeros = scalars + (summed if stored else 0)  # sums in registers are put there the first time
    take(8, scalars + summed)
    for size in (8, 8, 4, 32):  # row_agreement, best_weight, best_partner, shares
        take(size, total)
    for size in (4, 8, 4):  # best, others, code of each part
        take(size, best.parts * parts_of_team * total)
    take(8, 2 * 1024 // 32)
    return Plan(log2_block, block, team, n, f, c, width, -(-c // span), columns, best, sums, column_splits,
                product_splits, used, 8 * zeros)  # fmt: skip
