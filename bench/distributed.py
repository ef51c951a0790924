"""Measures the loss over many processes: speed on two, bytes on the wire, time behind slow links.

    python -m bench.distributed --json                    # all of it; some minutes with the CPU kernels
    python -m bench.distributed --only traffic --world 2 4
    python -m bench.distributed --show FILE.json          # the tables of an earlier run

Speed: one process with one thread against two with one thread each, on the same batch, in turns of alternating order;
a ratio is formed within a round, of the clock's seconds and of those on a processor (the busiest rank's), which other
people's load leaves alone. Traffic: each rank has a network namespace with an interface of its own, whose
counters are read before and after some steps, so that making connections does not count; payload is bytes less 66 of
headers for each packet, acknowledgements included. Where there can be no such namespaces, what is handed to
torch.distributed is counted instead and marked "hooks". Links: the same ranks with the interfaces slowed down, against
`bench.scaling_predictions.behind_links`. The JSON:

    {"schema": 1, "benchmark": "distributed", "machine": `train.machine.describe`'s, "settings": {...},
     "speed": [{"case", "one", "two": {"seconds", spread}, "ratio", "processor_ratio": {"values", spread},
                "parts": {part: seconds}}],
     "traffic": [{"case", "world", "counted": "interface" or "hooks", "payload", "bytes", "packets": per rank and step,
                  "handed": {collective: bytes}, "formula", "formula_with_gloo"}],
     "links": [{"case", "world", "rate", "reached", "delay", "seconds": spread, "unlimited", "pass_1", "alone": seconds
                measured, "predicted", "from_one"}],
     "agreement": [{"world", "seconds"}], "no_network": None or the reason, "bars": what `judge` returns}
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from bench import distributed_network as network
from bench import distributed_ranks as ranks
from bench import scaling_formulas as formulas
from bench.distributed_parts import PARTS
from bench.distributed_tables import table
from bench.gpu_record import write_json
from train.machine import describe, slug
from bench.results import RESULTS, ResultsError
from bench.scaling_predictions import behind_links
from bench.timing import ratios, spread
from cplearn_kernels import HadamardDictionary
from cplearn_kernels.backends import select

SCHEMA = 1
SECTIONS = ("speed", "traffic", "links")
SPEED_BAR, SPEED_CODES = 1.8, 1 << 20
TRAFFIC_BAR, TRAFFIC_CODES = 0.01, (1 << 14, 1 << 22)
# (N, f) of the traffic, and how the links are slowed down: bits per second, seconds on the way.
TRAFFIC_SHAPES = ((64, 128), (256, 128), (64, 256))
LINK_SHAPES = ((256, 128, 1 << 14), (2048, 128, 1 << 14))
LINKS = ((1e9, 0.0), (1e8, 0.0), (None, 1e-3), (None, 5e-3))


def case(N: int, f: int, c: int, dtype: str = "float32") -> dict[str, Any]:
    return {"N": N, "f": f, "c": c, "dtype": dtype}


def shape_of(entry: Mapping[str, Any], world: int) -> formulas.Shape:
    """The formulas' shape of a case; the backend decides how many numbers per row are added up."""
    element = {"float64": 8, "float32": 4}.get(entry["dtype"], 2)
    h = torch.empty(1, entry["f"], dtype=getattr(torch, entry["dtype"]))
    backend = select(entry["backend"], "cplearn_loss", HadamardDictionary(entry["f"], entry["c"]), h)
    return formulas.hadamard(entry["N"], entry["f"], entry["c"], world, element, backend.Shard.ROW_SCALARS)


def speed(cases: Sequence[Mapping[str, Any]], rounds: int, backend: str | None, say) -> list[dict[str, Any]]:
    """One process against two, each with one thread."""
    one, two = ranks.Group(1), ranks.Group(2)
    try:
        rows = []
        for entry in cases:
            one.run("take", entry, backend, False)
            two.run("take", entry, backend, True)
            seconds: dict[str, list[float]] = {"one": [], "two": []}
            processor: dict[str, list[float]] = {"one": [], "two": []}
            warm = {name: max(map(sum, group.run("timed", 2))) / 2 for name, group in (("one", one), ("two", two))}
            repeats = {name: min(max(round(1.0 / took), 1), 50) for name, took in warm.items()}
            for index in range(rounds):
                say(f"speed: c = {entry['c']}, round {index + 1} of {rounds}")
                order = [("one", one), ("two", two)]
                for name, group in order if index % 2 == 0 else order[::-1]:
                    took = group.run("timed", repeats[name])
                    seconds[name].append(max(map(sum, took)) / repeats[name])
                    processor[name].append(max(group.run("processor")))
            counted = two.run("counted", repeats["two"], False)
            rows.append({
                "case": entry, **{name: {"seconds": values, **spread(values)} for name, values in seconds.items()},
                "ratio": _with_values(ratios(seconds["one"], seconds["two"])),
                "processor_ratio": _with_values(ratios(processor["one"], processor["two"])),
                "parts": {part: statistics.mean(found["parts"].get(part, 0.0) for found in counted) / repeats["two"]
                          for part in PARTS},
            })  # fmt: skip
        return rows
    finally:
        one.close()
        two.close()


def _with_values(values: list[float]) -> dict[str, Any]:
    return {"values": values, **spread(values)}


def traffic(cases, worlds: Sequence[int], steps: int, backend: str | None, on_wire: bool, say) -> list[dict[str, Any]]:
    """Bytes per rank and step, on the wire if there can be one."""
    rows = []
    for world in worlds:
        say(f"traffic: {world} ranks, {len(cases)} cases")
        measure = ranks.measure if on_wire else ranks.measure_by_hooks
        for found in measure(cases, world=world, steps=steps, backend=backend):
            shape = shape_of({**found["case"], "backend": backend}, world)
            per_rank = {key: statistics.mean(rank[key] for rank in found["ranks"]) / steps
                        for key in ("wire_bytes", "wire_packets")}  # fmt: skip
            handed = {name: statistics.mean(rank["handed_bytes"][name] for rank in found["ranks"]) / steps
                      for name in found["ranks"][0]["handed_bytes"]}  # fmt: skip
            on_interface = per_rank["wire_bytes"] - network.HEADERS * per_rank["wire_packets"]
            rows.append({"case": found["case"], "world": world, "counted": "interface" if on_wire else "hooks",
                         "payload": on_interface if on_wire else sum(handed.values()),
                         "bytes": per_rank["wire_bytes"] if on_wire else None,
                         "packets": per_rank["wire_packets"] if on_wire else None,
                         "handed": handed, "formula": sum(formulas.sent(shape).values()),
                         "formula_with_gloo": formulas.sent_by_gloo(shape)})  # fmt: skip
    return rows


def links(cases, worlds, limits, steps: int, backend: str | None, say) -> tuple[list[dict[str, Any]], list[dict]]:
    """Seconds of a step behind slow links beside two predictions; and seconds of the agreement without.

    One prediction begins with the same ranks' step without limits, the other with one process alone, whose time is
    divided by the ranks that have a core.
    """
    rows, agreements = [], []
    alone = [statistics.median(found) for found in _alone(cases, steps, backend)]
    for world in worlds:
        say(f"links: {world} ranks, no limit")
        free = ranks.measure(cases, world=world, steps=steps, backend=backend)
        agreement = statistics.median(rank["parts"]["agreement"] / steps for found in free for rank in found["ranks"])
        agreements.append({"world": world, "seconds": agreement})
        for rate, delay in ((None, 0.0), *limits):
            if rate or delay:
                say(f"links: {world} ranks, {rate} bit/s, {delay} s")
                measured = ranks.measure(cases, world=world, steps=steps, backend=backend, rate=rate, delay=delay)
            else:
                measured = free
            for found, unlimited, of_one in zip(measured, free, alone, strict=True):
                shape = shape_of({**found["case"], "backend": backend}, world)
                base = spread(_slowest(unlimited))["median"]
                pass_1 = max(rank["parts"]["pass 1"] for rank in unlimited["ranks"]) / steps / 2
                reached = found["reached"]
                rows.append({
                    "case": found["case"], "world": world, "rate": rate, "reached": reached, "delay": delay,
                    "seconds": {"seconds": _slowest(found), **spread(_slowest(found))}, "unlimited": base,
                    "pass_1": pass_1, "predicted": behind_links(shape, base, reached, delay, pass_1), "alone": of_one,
                    "from_one": behind_links(shape, of_one / min(world, os.cpu_count()), reached, delay, pass_1),
                })  # fmt: skip
    return rows, agreements


def _alone(cases: Sequence[Mapping[str, Any]], steps: int, backend: str | None) -> list[list[float]]:
    """Seconds of each step of one process with one thread and no process group."""
    group, found = ranks.Group(1), []
    try:
        for entry in cases:
            group.run("take", entry, backend, False)
            group.run("timed", 2)
            found.append(group.run("timed", steps)[0])
        return found
    finally:
        group.close()


def _slowest(found: Mapping[str, Any]) -> list[float]:
    """Seconds of each step on the rank that took longest."""
    return [max(step) for step in zip(*(rank["seconds"] for rank in found["ranks"]), strict=True)]


def judge(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One verdict per bar: "text", "measured" and "met", None where nothing measured it."""
    found = [row["ratio"]["median"] for row in record["speed"] if row["case"] == case(256, 128, SPEED_CODES)]
    measured = found[0] if found else None
    bars = [{"text": f"two processes >= {SPEED_BAR}x one, N=256, f=128, c=2^20", "measured": measured,
             "met": None if measured is None else measured >= SPEED_BAR}]  # fmt: skip
    by_case: dict[tuple, dict[int, float]] = {}
    for entry in record["traffic"]:
        if entry["counted"] == "interface":
            key = entry["world"], entry["case"]["N"], entry["case"]["f"]
            by_case.setdefault(key, {})[entry["case"]["c"]] = entry["payload"]
    low, high = TRAFFIC_CODES
    apart = [abs(found[high] / found[low] - 1) for found in by_case.values() if low in found and high in found]
    worst = max(apart, default=None)
    bars.append({"text": f"bytes on the wire at c=2^22 within {TRAFFIC_BAR:.0%} of those at 2^14, all shapes and ranks",
                 "measured": worst, "met": None if worst is None else worst <= TRAFFIC_BAR})  # fmt: skip
    return bars


def run(given: argparse.Namespace, say=lambda text: None) -> dict[str, Any]:
    """Measures as the command line says; the record."""
    reason, sections = network.missing(), given.only or SECTIONS
    record: dict[str, Any] = {
        "schema": SCHEMA, "benchmark": "distributed", "machine": describe(1),
        "settings": {"backend": given.backend, "rounds": given.rounds, "steps": given.steps},
        "speed": [], "traffic": [], "links": [], "agreement": [], "no_network": reason,
    }  # fmt: skip
    if "speed" in sections:
        record["speed"] = speed([case(256, 128, c) for c in given.codes], given.rounds, given.backend, say)
    if "traffic" in sections:
        cases = [case(N, f, c) for N, f in TRAFFIC_SHAPES for c in given.traffic_codes]
        record["traffic"] = traffic(cases, given.world, given.steps, given.backend, reason is None, say)
    if "links" in sections and reason is None:
        worlds = [world for world in given.world if world <= 4]
        cases = [case(*entry) for entry in LINK_SHAPES]
        record["links"], record["agreement"] = links(cases, worlds, LINKS, 2 * given.steps, given.backend, say)
    record["bars"] = judge(record)
    return record


def load(path: Path) -> dict[str, Any]:
    """Reads a record; ResultsError if it is missing, damaged or of another benchmark or schema."""
    try:
        record = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: not a readable JSON file ({error})") from None
    kind = {"benchmark": "distributed", "schema": SCHEMA}
    if not isinstance(record, dict) or not kind.items() <= record.items() or not {*SECTIONS, "bars"} <= record.keys():
        raise ResultsError(f"{path}: not a record with {kind}, {', '.join(SECTIONS)} and bars")
    return record


def default_path(record: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    return folder / f"distributed-{slug(record['machine']['cpu'])}.json"


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse wants it."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def ranks_given(text: str) -> int:
    """A whole number of at least 2: one rank sends nothing."""
    if (number := int(text)) < 2:
        raise ValueError(text)
    return number


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; status 1 if --require-bars finds a bar missed or not measured, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, help="sections to measure (all)")
    add("--codes", nargs="+", type=positive, default=[1 << 17, 1 << 20, 1 << 22], metavar="C", help="of the speed")
    add("--traffic-codes", nargs="+", type=positive, default=[1 << 14, 1 << 18, 1 << 22], metavar="C",
        help="of the traffic (2^14 2^18 2^22)")
    add("--world", nargs="+", type=ranks_given, default=[2, 4, 8], help="ranks of traffic; up to 4 of links (2 4 8)")
    add("--rounds", type=positive, default=9, help="of the speed (9)")
    add("--steps", type=positive, default=5, help="counted steps of a traffic case; twice as many of links (5)")
    add("--backend", help="the library's backend; the fastest unless given")
    add("--json", type=Path, nargs="?", const=Path(), metavar="FILE",
        help="write a results file; without FILE in bench/results, named by processor")  # fmt: skip
    add("--require-bars", action="store_true", help="status 1 unless all bars are measured and met")
    add("--show", type=Path, metavar="FILE", help="print the tables of a results file only")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    # Before any process starts: by default OpenMP's threads spin while they wait, on cores that other ranks want.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        if given.json is not None and not given.json.parent.is_dir():
            raise ResultsError(f"--json was {given.json}, expected a file in an existing folder")
        record = run(given, say) if given.show is None else load(given.show)
        print(table(record))
        if given.json is not None and given.show is None:
            path = default_path(record) if given.json == Path() else given.json
            write_json(path, record)
            print(f"\nwritten: {path.name}")
    except (ResultsError, OSError, RuntimeError, ValueError) as error:
        print(f"bench.distributed: {error}", file=sys.stderr)
        return 2
    return int(given.require_bars and not all(bar["met"] for bar in record["bars"]))


if __name__ == "__main__":
    sys.exit(main())
