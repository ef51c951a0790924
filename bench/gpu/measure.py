"""Measures the rows of the GPU benchmark, in a process of its own: a crash or a hang costs a cell and not the run.

Before anything that may take long or fail, the process notes in a file which cells it is busy with and how long that
may take. `bench.gpu` reads it, ends a process that takes longer, and starts another that goes on with what is left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import torch

from bench import gpu_columns, gpu_machine, gpu_timing
from bench.gpu_bars import BOUNDS, bound_for
from bench.gpu_record import LOST, PROGRESS_FILE, Record, write_json
from bench.gpu_rows import COLUMNS, LIBRARY, TORCH_MOST_CODES, GpuRow, plan
from bench.timing import ratios, spread

# Seconds that one thing may take before the process is ended.
LIMITS = {"start": 90, "check": 75, "build": 45, "compile": 120, "call": 45, "rounds": 60}
# A column whose calls would take longer on one row is left out there; a row that a bar needs may take longest.
MOST_SECONDS = {"library": 12.0, "formula": 6.0, "bar": 30.0}
COMPILE_SECONDS = 60.0  # not begun with less time left: tuning a compiled formula has taken up to this
FIRST_RATE = 5e9  # logits/s that a backend without any measured row is taken to reach


class DeviceLost(Exception):
    """The device answers every call of this process with an error."""


class Worker:
    """One pass over the plan: everything that has no cell yet."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options
        self.dry_run, self.rounds = options["dry_run"], options["rounds"]
        self.deadline = gpu_timing.Deadline(options["until"] - time.time())
        self.device = torch.device("cpu" if self.dry_run else "cuda")
        self.timer = gpu_timing.timer_for(self.device)
        self.turn_seconds = 0.0 if self.dry_run else 0.04
        self.record = Record(folder)
        self.weights = gpu_columns.DenseWeights()
        self.rows, bars = plan(self.dry_run)
        self.rows_with_bars = {bar.row for bar in bars}

    def run(self) -> None:
        """Describes the machine once, lays out the plan, measures row after row until the time is over."""
        content = self.record.content
        backends, refused = gpu_machine.usable_backends(self.options["backends"], self.dry_run)
        content["settings"] = {**content["settings"], "backends": list(backends), "backends_refused": refused}
        columns_of = [self._library_columns(row, backends) + list(row.columns) for row in self.rows]
        for row, columns in zip(self.rows, columns_of):
            self.record.declare(row, columns)
        self.record.save()
        if "matmul" not in content["machine"]:
            described = gpu_machine.describe(self.device, self.options["commit"])
            content["machine"] = {**described, **gpu_timing.rates(self.device)}
            self.record.save()
        for row, columns in zip(self.rows, columns_of):
            if not self.deadline.fits(0.0 if self.dry_run else 1.5):
                break
            entry = self.record.row(row.name)
            with self._guard(columns, entry):
                self._measure_row(row, columns, entry)
            self.record.save()

    def _library_columns(self, row: GpuRow, backends: dict[str, Any]) -> list[str]:
        function = {"logsumexp": "projector_logsumexp", "loss": "cplearn_loss", "loss_graph": "cplearn_loss"}
        found = []
        for name, info in backends.items():
            serves = function.get(row.task, row.task) in info.functions and row.dictionary in info.dictionaries
            if serves and not (name == "torch" and row.num_codes > TORCH_MOST_CODES[len(backends) == 1]):
                found.append(LIBRARY + name)
        return found

    def _measure_row(self, row: GpuRow, columns: list[str], entry: dict[str, Any]) -> None:
        cells = entry["cells"]
        pending = [column for column in columns if column not in cells]
        # The library takes its turns again beside columns that come later.
        again = [column for column in columns if column.startswith(LIBRARY) and "median" in cells.get(column, {})]
        if not pending:
            return
        print(f"{row.name}: {', '.join(pending)} ({self.deadline.remaining():.0f} s left)", flush=True)
        compiling = any(_is_compiled(column) for column in pending)
        if compiling:
            # From an empty state, so that torch's limit on recompilations is never met; and emptied after the row,
            # because what has been compiled keeps the memory of its CUDA graphs.
            torch.compiler.reset()
        problem = gpu_columns.Problem(row, self.device)
        self.weights.turn_to(problem)
        calls, took, peaks = {}, {}, {}
        for column in [*again, *pending]:
            reason = self._reason_to_skip(column, row, problem)
            if reason is not None:
                cells.setdefault(column, reason)
                continue
            with self._guard([column], entry):
                call = self._prepare(column, row, problem, entry)
                compiled = _is_compiled(column)
                with self._busy(row, [column], "compile" if compiled else "call"):
                    # The first call compiles, fills caches, makes workspaces: the second one is looked at. A row of
                    # one timed call has been warmed by its check, as far as that goes.
                    first = self._first_call(column, call, entry)
                    if not row.once or first < 5:
                        peaks[column] = self.timer.peak_bytes(call)
                        if compiled:
                            # That call recorded a CUDA graph, whose arrays lie in a pool that no peak shows.
                            peaks[column] = None
                        took[column] = self.timer.seconds(call)
                    else:
                        took[column] = first
                if took[column] * self.rounds > self._most_seconds(column, row):
                    cells.setdefault(column, {"skipped": f"time ({took[column]:.1f} s a call)"})
                    continue
                calls[column] = call
        if row.once:
            seconds, errors = {column: [took[column]] for column in calls}, {}
        else:
            with self._busy(row, list(calls), "rounds"):
                seconds, errors = gpu_timing.alternate(
                    calls, took, self.timer, self.deadline, rounds=self.rounds, turn_seconds=self.turn_seconds
                )
        self._note(row, cells, seconds, errors, peaks)
        calls.clear()
        if compiling:
            torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # an error that a round left behind belongs to this row
            torch.cuda.empty_cache()

    def _prepare(
        self, column: str, row: GpuRow, problem: gpu_columns.Problem, entry: dict[str, Any]
    ) -> gpu_timing.Call:
        """The column's call; the library's results are checked before."""
        if column.startswith(LIBRARY) and column not in entry["agreement"]:
            with self._busy(row, [column], "check"):
                found = entry["agreement"][column] = gpu_columns.check(column, row, self.device)
            if not found["agrees"]:
                entry["wrong"].append(f"{column}: {json.dumps(found)}")
        with self._busy(row, [column], "build"):
            return gpu_columns.build(column, problem, self.weights, self.dry_run)

    def _first_call(self, column: str, call: gpu_timing.Call, entry: dict[str, Any]) -> float:
        """Calls once, looks at the results, returns the seconds it took."""
        results: list[tuple[torch.Tensor, ...]] = []
        seconds = self.timer.seconds(lambda: results.append(call()))
        self._look_at(column, results[0], entry)
        return seconds

    def _reason_to_skip(self, column: str, row: GpuRow, problem: gpu_columns.Problem) -> dict[str, Any] | None:
        """A cell that says why the column is not tried, None to try it."""
        calls = 2 if row.once else 3 + self.rounds
        if column.startswith(LIBRARY):
            estimate = {}
            needed = row.logits / self._known_rate(column, row) * calls
        else:
            missing = gpu_columns.missing_package(column)
            if missing is not None:
                return {"skipped": missing}
            needed = gpu_columns.estimated_seconds(column, row, self.record.content["machine"]) * calls
            estimate = {"estimated_bytes": gpu_columns.estimated_bytes(column, row),
                        "weight_bytes": gpu_columns.weight_bytes(column, row)}
            # A tenth more for the allocator's rounding and the products' workspaces.
            bytes_needed = 1.1 * estimate["estimated_bytes"] + self.weights.missing_bytes(column, problem)
            free = gpu_machine.free_bytes(self.device)
            if bytes_needed > free:
                return {"skipped": f"does not fit: {bytes_needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free", **estimate}
        compiling = COMPILE_SECONDS if _is_compiled(column) and not self.dry_run else 0.0
        if needed > self._most_seconds(column, row) or not self.deadline.fits(needed + compiling):
            return {"skipped": f"time (about {needed + compiling:.0f} s)", **estimate}
        return None

    def _most_seconds(self, column: str, row: GpuRow) -> float:
        if row.once or row.name in self.rows_with_bars:
            return MOST_SECONDS["bar"]
        return MOST_SECONDS["library" if column.startswith(LIBRARY) else "formula"]

    def _known_rate(self, column: str, row: GpuRow) -> float:
        """Logits/s of the backend on the largest measured row of the same kind: larger ones are no slower per logit."""
        best = (0, FIRST_RATE)
        for other in self.record.content["rows"]:
            rate = other["cells"].get(column, {}).get("logits_per_second")
            same = all(other[key] == getattr(row, key) for key in ("task", "dictionary", "num_features"))
            if rate is not None and same and row.logits >= other["logits"] > best[0]:
                best = (other["logits"], rate)
        return best[1]

    def _look_at(self, column: str, results: tuple[torch.Tensor, ...], entry: dict[str, Any]) -> None:
        """At full size: the library's results are finite, and its loss is that of the authors' formula in float32."""
        if column.startswith(LIBRARY) and not all(bool(part.isfinite().all()) for part in results):
            entry["wrong"].append(f"{column}: a result is not finite")
        if entry["task"] != "loss":
            return
        losses = entry.setdefault("losses", {})
        losses[column] = results[0].item()
        if column == "authors_float32":
            other = losses[column]  # may be NaN, which differs from nothing
            # 1e-4: sums of 10^9 float32 terms are good to 1e-5 or so; a lost block of codes is far more.
            for name in [name for name in losses if name.startswith(LIBRARY)]:
                if abs(losses[name] - other) > 1e-4 * max(abs(other), 1.0):
                    entry["wrong"].append(f"{name}: loss {losses[name]!r}, authors' formula at full size {other!r}")

    def _note(self, row, cells, seconds, errors, peaks) -> None:
        """Turns what was measured into cells."""
        for column, reason in errors.items():
            cells.setdefault(column, {"error": reason})
        architecture = self.record.content["machine"].get("architecture", "")
        for column, times in seconds.items():
            if column in cells or not times:
                continue  # measured before; or not one round, which ends as skipped
            cell: dict[str, Any] = {"seconds": times, **spread(times), "peak_bytes": peaks.get(column)}
            cell["logits_per_second"] = rate = row.logits / cell["median"]
            cell["weight_bytes"] = gpu_columns.weight_bytes(column, row)
            if column.startswith(LIBRARY):
                backend = column.removeprefix(LIBRARY)
                bound = bound_for(architecture, self.record.row(row.name), backend) if backend in BOUNDS else None
                cell["bound_share"] = rate / bound["logits_per_second"] if bound else None
            else:
                others = {name: other for name, other in seconds.items() if name.startswith(LIBRARY)}
                cell["ratios"] = {name: spread(ratios(times, other)) for name, other in others.items()
                                  if len(other) == len(times)}
            cells[column] = cell

    @contextlib.contextmanager
    def _busy(self, row: GpuRow, columns: list[str], what: str) -> Iterator[None]:
        progress = {"row": row.name, "columns": columns, "what": what, "limit": LIMITS[what], "began": time.time()}
        write_json(self.folder / PROGRESS_FILE, progress)
        yield

    @contextlib.contextmanager
    def _guard(self, columns: list[str], entry: dict[str, Any]) -> Iterator[None]:
        """An exception becomes the cell of each column that has none; one that broke the device ends the process."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:
            if isinstance(error, gpu_columns.WrongResult):
                entry["wrong"].append(f"{columns[0]}: {error}")
            try:
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception:
                self.record.blame(entry["name"], columns, gpu_timing.message(error))
                self.record.save()
                raise DeviceLost from error
            for column in columns:
                entry["cells"].setdefault(column, {"error": gpu_timing.message(error)})
            gc.collect()  # the traceback's frames hold tensors


def _is_compiled(column: str) -> bool:
    return not column.startswith(LIBRARY) and COLUMNS[column].compiled


def main(arguments: list[str]) -> int:
    """`python -m bench.gpu_worker FOLDER OPTIONS`, with the options as JSON; `bench.gpu` calls it."""
    options = json.loads(arguments[1])
    if options["dry_run"]:
        torch.set_num_threads(1)  # tiny tensors gain nothing from threads, which wait for each other on a busy machine
    try:
        Worker(Path(arguments[0]), options).run()
    except DeviceLost as lost:
        print(f"the device is lost: {lost.__cause__}", flush=True)
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
