"""Says what a sharded loss sends and how it scales to many GPUs: formulas, models, simulation, none of it measured.

    python -m bench.scaling                                  # all tables; --markdown for the documentation's form
    python -m bench.scaling steps crossover --rate 0.3e12    # some, with a GPU's logits/s instead of the model's
    python -m bench.scaling --shape 4096 2048 24 64          # one step in detail: N, f, log2 of c, GPUs
    python -m bench.scaling --update-docs docs/scaling.md    # fills the tables of the documentation, the measured ones
                                                             # from the latest bench/results/distributed-*.json

`bench.scaling_formulas` counts bytes, `bench.scaling_cluster` has NCCL's collectives, `bench.scaling_simulation` their
hops one by one, `bench.scaling_predictions` puts a step together, `bench.distributed` measures what can be measured
without GPUs. A table of the documentation stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Callable, Mapping

from bench import distributed, distributed_tables
from bench import scaling_formulas as formulas
from bench.results import RESULTS, ResultsError
from bench.scaling_predictions import fits, predict, simulate
from bench.scaling_tables import ELEMENT, TABLES

MEASURED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "origin": distributed_tables.origin, "bars": distributed_tables.bars_text,
    "speed": distributed_tables.speed_table, "speed parts": distributed_tables.parts_table,
    "traffic": distributed_tables.traffic_table, "links": distributed_tables.links_table,
    "agreement": distributed_tables.agreement_text,
}  # fmt: skip
_TABLE = re.compile(r"(<!-- table: ([a-z ]+) -->\n)(?:(?!<!--).)*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str, record: Mapping[str, Any]) -> str:
    """A document with the tables between its markers made anew."""

    def made(found: re.Match) -> str:
        name = found[2]
        if name not in TABLES and name not in MEASURED:
            raise ResultsError(f"table {name!r}; expected one of {', '.join((*TABLES, *MEASURED))}")
        return found[1] + (TABLES[name]() if name in TABLES else MEASURED[name](record)) + "\n" + found[3]

    return _TABLE.sub(made, text)


def latest() -> Path:
    """The record of `bench.distributed` with the latest date."""
    found = sorted(RESULTS.glob("distributed-*.json"))
    if not found:
        raise ResultsError("bench/results holds no distributed-*.json; `python -m bench.distributed --json` writes one")
    return max(found, key=lambda path: distributed.load(path)["machine"]["date"])


def detail(N: int, f: int, log2_c: int, world: int, rate: float | None) -> str:
    """One step: bytes by term, seconds by part."""
    shape = formulas.hadamard(N, f, 1 << log2_c, world, ELEMENT)
    if not fits(shape):
        raise ResultsError(f"{shape.codes_per_rank} codes a rank; expected at most 2^30, take more ranks")
    times = predict(shape, rate=rate)
    lines = [f"{term}: {sent:.0f} bytes sent by each rank" for term, sent in formulas.sent(shape).items()]
    lines += [f"{part}: {1e3 * seconds:.4g} ms" for part, seconds in vars(times).items() if part != "rows"]
    uneven = simulate(shape, rate=rate)
    lines.append(f"all: {1e3 * times.all:.4g} ms predicted, {100 * times.share_of_work:.0f} % of it work on "
                 f"{shape.codes_per_rank} codes; {1e3 * uneven:.4g} ms with ranks 5 % uneven")  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints tables or fills a document; status 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("tables", nargs="*", help=f"tables to print (all): {', '.join(TABLES)}")
    add("--rate", type=float, help="logits per second of a GPU, forward and gradient (a model of the kernels)")
    add("--shape", nargs=4, type=distributed.positive, metavar=("N", "F", "LOG2_C", "GPUS"), help="one step in detail")
    add("--markdown", action="store_true", help="tables in Markdown instead of columns")
    add("--update-docs", type=Path, metavar="FILE", help="fill the tables of a document")
    add("--results", type=Path, metavar="FILE", help="the record for measured tables (the latest in bench/results)")
    given = parser.parse_args(arguments)
    try:
        if unknown := [name for name in given.tables if name not in TABLES]:
            raise ResultsError(f"table {unknown[0]!r}; expected one of {', '.join(TABLES)}")
        if given.update_docs:
            text = given.update_docs.read_text()
            given.update_docs.write_text(filled(text, distributed.load(given.results or latest())))
            print(f"filled: {len(_TABLE.findall(text))} tables of {given.update_docs.name}")
        elif given.shape:
            print(detail(*given.shape, given.rate))
        else:
            shown = (lambda table: table) if given.markdown else distributed_tables.aligned
            print("\n\n".join(f"{name}\n\n{shown(TABLES[name](given.rate))}" for name in given.tables or TABLES))
    except (ResultsError, OSError) as error:
        print(f"bench.scaling: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
