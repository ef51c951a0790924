"""Measures the loss over many processes: the speed of two against one, and the bytes that each rank sends.

Speed: one process with one thread against two with one thread each, on the same batch, in turns; a ratio is formed
within a round. Traffic: what a rank hands to torch.distributed in one step, beside the formula of
`bench.distributed.traffic`, for several numbers of codes. The JSON:

    {"benchmark": "distributed", "machine": what `describe` returns, "settings": {...}, "targets": verdicts,
     "speed": [{"case", "one": {"seconds", spread}, "two": the same, "ratio": spread}],
     "traffic": [{"case", "world", "counted": {collective: bytes of a rank}, "formula": the same}]}
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.distributed import rank_processes as ranks
from bench.distributed.traffic import COLLECTIVES, bytes_sent
from bench.results import median_and_range, report
from bench.targets import LIBRARY, Target, Verdict, judged
from bench.timing import alternate, ratios, spread
from cplearn_kernels import HadamardDictionary
from cplearn_kernels.backends import select
from train.machine import describe

SPEED_SHAPE, SPEED_CODES, TWICE = (256, 128), 1 << 20, Target("speed", 1.8, "one")
TRAFFIC_SHAPES = ((64, 128), (256, 128), (64, 256))


def as_case(shape: tuple[int, int], c: int) -> dict[str, int]:
    """N rows per view on all ranks together, f features, c codes."""
    return {"N": shape[0], "f": shape[1], "c": c}


def speed(codes: Sequence[int], rounds: int, turn_seconds: float, backend: str | None) -> list[dict[str, Any]]:
    """One process against two, each with one thread, for each number of codes."""
    rows = []
    with ranks.Group(1) as one, ranks.Group(2) as two:
        for case in (as_case(SPEED_SHAPE, c) for c in codes):
            one.run(ranks.prepare, case, backend)
            two.run(ranks.prepare, case, backend)
            calls = {"one": partial(one.run, ranks.step), "two": partial(two.run, ranks.step)}
            seconds = alternate(calls, rounds, turn_seconds=turn_seconds)
            taken = {name: {"seconds": values, **spread(values)} for name, values in seconds.items()}
            rows.append({"case": case, **taken, "ratio": spread(ratios(seconds["one"], seconds["two"]))})
    return rows


def traffic(codes: Sequence[int], worlds: Sequence[int], backend: str | None) -> list[dict[str, Any]]:
    """Bytes per rank and step, the mean over ranks, by collective."""
    rows = []
    for world in worlds:
        with ranks.Group(world) as group:
            for case in (as_case(shape, c) for shape in TRAFFIC_SHAPES for c in codes):
                group.run(ranks.prepare, case, backend)
                found = group.run(ranks.traffic)
                mean = {name: statistics.mean(rank.get(name, 0.0) for rank in found) for name in COLLECTIVES}
                h, dictionary = torch.empty(1, case["f"]), HadamardDictionary(case["f"], case["c"])
                row_scalars = select(backend, "cplearn_loss", dictionary, h).Shard.ROW_SCALARS
                formula = bytes_sent(case["N"], case["f"], world, element=4, row_scalars=row_scalars)
                rows.append({"case": case, "world": world, "counted": mean, "formula": formula})
    return rows


def judge(record: Mapping[str, Any]) -> list[Verdict]:
    """The targets that this record measures."""
    verdicts = []
    for row in record["speed"]:
        if row["case"] == as_case(SPEED_SHAPE, SPEED_CODES):
            found = TWICE.judge({"one": row["one"], LIBRARY: row["two"]})
            verdicts.append({**found, "text": "two processes, N=256, f=128, c=2^20: " + found["text"]})
    # The formula knows no c: a rank that sends what it says sends the same whatever c.
    off = [100 * (sum(row["counted"].values()) / sum(row["formula"].values()) - 1) for row in record["traffic"]]
    if off:
        text, worst = "bytes of a rank are the formula's, whatever c, within 1%", max(off, key=abs)
        verdicts.append(judged(text, 1.0, worst, "%", [min(off), max(off)], abs(worst) <= 1.0))
    return verdicts


def tables(record: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """Rows of the speed and of the traffic."""
    speeds = [
        {**row["case"], "one process, ms": median_and_range(row["one"], 1e3),
         "two processes, ms": median_and_range(row["two"], 1e3), "times as fast": median_and_range(row["ratio"], 1)}
        for row in record["speed"]
    ]  # fmt: skip
    sent = [
        {"ranks": row["world"], **row["case"], **{f"{name}, B": f"{row['counted'][name]:.0f}" for name in COLLECTIVES},
         "all, B": f"{sum(row['counted'].values()):.0f}", "formula, B": f"{sum(row['formula'].values()):.0f}"}
        for row in record["traffic"]
    ]  # fmt: skip
    return [speeds, sent]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; status 1 if a target is missed, 2 if something could not be done."""
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--codes", nargs="*", type=int, default=[1 << 17, 1 << 20, 1 << 22], metavar="C", help="of the speed")
    add("--traffic-codes", nargs="*", type=int, default=[1 << 14, 1 << 18, 1 << 22], metavar="C", help="of the bytes")
    add("--world", nargs="*", type=int, default=[2, 4, 8], metavar="R", help="ranks of the bytes (2 4 8)")
    add("--rounds", type=int, default=9, help="of the speed (9)")
    add("--turn-seconds", type=float, default=1.0, help="length of a turn at least (1)")
    add("--backend", help="the library's backend; the fastest unless given")
    add("--json", type=Path, nargs="?", const=Path(), metavar="FILE", help="results (in bench/results without FILE)")
    given = parser.parse_args(arguments)
    # Inherited by the ranks: by default OpenMP's threads spin while they wait, on cores that other ranks want.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        record: dict[str, Any] = {
            "benchmark": "distributed", "machine": describe(1),
            "settings": {"backend": given.backend, "rounds": given.rounds},
            "speed": speed(given.codes, given.rounds, given.turn_seconds, given.backend),
            "traffic": traffic(given.traffic_codes, given.world, given.backend),
        }  # fmt: skip
        record["targets"] = judge(record)
        return report(record, tables(record), given.json)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"bench.distributed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
