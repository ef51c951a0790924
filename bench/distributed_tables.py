"""The tables of `bench.distributed`'s record: in Markdown for the documentation, with where it was measured as text."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from bench.distributed_parts import PARTS


def power(c: int) -> str:
    """A power of two as one."""
    return f"2^{c.bit_length() - 1}" if c & (c - 1) == 0 else str(c)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def aligned(table: str) -> str:
    """A table in Markdown as plain text in columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|---" not in line]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def origin(record: Mapping[str, Any]) -> str:
    """One line: machine, versions, when."""
    machine, settings = record["machine"], record["settings"]
    return (f"{machine['cpu']}, {machine['logical_cpus']} cores, one thread a process; torch {machine['torch']}; "
            f"cplearn-kernels {machine['cplearn_kernels']} at {machine['commit'] or 'no commit'}, backend "
            f"{settings['backend'] or 'the fastest'}; {machine['date']}; load before "
            f"{machine['load_average']}.")  # fmt: skip


def speed_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["speed"]:
        shape, ratios = row["case"], (row["ratio"], row["processor_ratio"])
        rows.append([
            str(shape["N"]), str(shape["f"]), power(shape["c"]), *(_spread(row[which]) for which in ("one", "two")),
            *(f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})" for ratio in ratios),
        ])  # fmt: skip
    return markdown(["N", "f", "c", "one process, ms", "two processes, ms", "times as fast", "by processor time"], rows)


def parts_table(record: Mapping[str, Any]) -> str:
    rows = [
        [power(row["case"]["c"]), *(f"{1e3 * row['parts'][part]:.3g}" for part in PARTS)] for row in record["speed"]
    ]
    return markdown(["ms on two processes, c", *PARTS], rows)


def traffic_table(record: Mapping[str, Any]) -> str:
    """A row for each N, f and number of ranks; payload by c, and how far the formula is off where it is most."""
    codes = sorted({row["case"]["c"] for row in record["traffic"]})
    grouped: dict[tuple, dict[int, Mapping[str, Any]]] = {}
    for row in record["traffic"]:
        key = row["case"]["N"], row["case"]["f"], row["world"], row["counted"]
        grouped.setdefault(key, {})[row["case"]["c"]] = row
    rows = []
    for (N, f, world, counted), found in grouped.items():
        any_row = next(iter(found.values()))
        model = any_row["formula_with_gloo" if counted == "interface" else "formula"]
        off = max((row["payload"] / model - 1 for row in found.values()), key=abs)
        payloads = [_kilobytes(found[c]["payload"]) if c in found else "" for c in codes]
        rows.append([str(N), str(f), str(world), counted, *payloads, _kilobytes(model), f"{100 * off:+.2f} %",
                     _kilobytes(any_row["formula"])])  # fmt: skip
    head = ["N", "f", "ranks", "counted on", *(f"kB, c = {power(c)}" for c in codes), "formula with gloo's headers, kB",
            "most off", "formula, kB"]  # fmt: skip
    return markdown(head, rows)


def links_table(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["links"]:
        shape, measured = row["case"], row["seconds"]["median"]
        limited = bool(row["rate"] or row["delay"])
        rows.append([str(row["world"]), str(shape["N"]), str(shape["f"]), power(shape["c"]), _rate(row["rate"]),
                     _rate(row["reached"]) if row["rate"] else "",
                     f"{1e3 * row['delay']:g}" if row["delay"] else "", _spread(row["seconds"]),
                     f"{1e3 * row['predicted']:.3g}" if limited else "",
                     f"{row['predicted'] / measured:.2f}" if limited else "", f"{1e3 * row['from_one']:.3g}",
                     f"{row['from_one'] / measured:.2f}"])  # fmt: skip
    return markdown(["ranks", "N", "f", "c", "rate of each rank", "reached", "delay, ms", "measured, ms",
                     "predicted, ms", "predicted / measured", "from one process, ms", "from one / measured"],
                    rows)  # fmt: skip


def table(record: Mapping[str, Any]) -> str:
    """Everything as text, the bars last."""
    blocks = [origin(record)]
    by_section = {"speed": (speed_table, parts_table), "traffic": (traffic_table,), "links": (links_table,)}
    for section, tables in by_section.items():
        if record[section]:
            blocks.extend(aligned(make(record)) for make in tables)
    if record["no_network"]:
        blocks.append(f"No bytes were counted on a wire: {record['no_network']}")
    if record["agreement"]:
        blocks.append(agreement_text(record))
    blocks.append(bars_text(record))
    return "\n\n".join(blocks)


def agreement_text(record: Mapping[str, Any]) -> str:
    """What the agreement takes where links have no limit."""
    found = (f"{1e6 * entry['seconds']:.0f} µs with {entry['world']} ranks" for entry in record["agreement"])
    return f"The agreement, links without limits: {', '.join(found)}."


def bars_text(record: Mapping[str, Any]) -> str:
    lines = []
    for bar in record["bars"]:
        said = "not measured"
        if bar["met"] is not None:
            said = f"{bar['measured']:.3g}, {'met' if bar['met'] else '**missed**'}"
        lines.append(f"- {bar['text']}: {said}")
    return "\n".join(lines)


def _spread(values: Mapping[str, float]) -> str:
    return f"{1e3 * values['median']:.3g} ({1e3 * values['min']:.3g}..{1e3 * values['max']:.3g})"


def _kilobytes(number: float) -> str:
    return f"{number / 1e3:,.1f}"


def _rate(rate: float | None) -> str:
    if not rate:
        return "no limit"
    return f"{rate / 1e9:.3g} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:.3g} Mbit/s"
