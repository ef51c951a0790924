"""`python -m train.theorem`: optimises free embeddings under the loss and compares the optimum with the theory's.

No network: both views are the same unit rows H of a parameter, so that nothing but the loss decides where they go. What
is compared, and why the numbers differ where they do: docs/embedding-theorem.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import cplearn_kernels as cpk
from train.checkpoint import write_atomically
from train.errors import InputError

DICTIONARIES = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}
FIRST_BETA, ANNEALED = 1e-3, 0.5
"""beta grows geometrically from the first value to 1 over the first ANNEALED part of the steps. Rows are shared out
among the codes while beta is small; with beta = 1 from the start they stay where they fell, some codes with twice as
many as others."""
LEARNING_RATE = 0.1
CODES_AT_ONCE, ROWS_AT_ONCE = 1 << 15, 1024


@dataclass(frozen=True)
class Settings:
    """What the points of one results file have in common."""

    num_features: int = 64
    eps: float | None = None
    """Of `default_temperature`; None is its default."""
    num_rows: int | None = None
    """Of every point; None is `affordable_rows`."""
    steps: int | None = None
    """Of every point; None is `affordable_steps`."""
    seconds_per_point: float = 300.0
    """Beyond it a point's schedule is cut short, which its "steps" shows."""
    seed: int = 0


def affordable_rows(num_codes: int) -> int:
    """Four rows per code while that is cheap, then fewer; below one per code from 2^14 codes on."""
    return min(4 * num_codes, 8192, max(256, (1 << 26) // num_codes))


def affordable_steps(num_rows: int, num_codes: int) -> int:
    """600, or as many as 6e9 logits allow, but no fewer than 60."""
    return min(600, max(60, int(6e9) // (num_rows * num_codes)))


def optimise(settings: Settings, kind: str, num_codes: int, say=lambda text: None) -> tuple[Tensor, dict]:
    """Minimise the loss over free embeddings.

    Returns:
        (unit rows H, float32 `(n, f)`; {"steps": done, "seconds": taken}).
    """
    dictionary, temperature = problem(settings, kind, num_codes)
    num_rows = settings.num_rows or affordable_rows(num_codes)
    steps = settings.steps or affordable_steps(num_rows, num_codes)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = unit(torch.randn(num_rows, settings.num_features, generator=generator)).requires_grad_()
    # Gradients fall by orders of magnitude as rows saturate, far below Adam's usual eps = 1e-8: that, or a longer
    # memory of their squares (0.99), would stop the rows short of the optimum.
    optimiser = torch.optim.Adam([rows], betas=(0.9, 0.9), eps=1e-20)
    start = last = time.monotonic()
    done, progress = 0, 0.0
    while progress < 1:
        beta = FIRST_BETA ** max(0.0, 1 - progress / ANNEALED)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (1 - progress) / (1 - ANNEALED))
        optimiser.zero_grad()
        h = unit(rows)
        cpk.cplearn_loss(h, h, dictionary, temperature=temperature, beta=beta, backend="cpu").backward()
        optimiser.step()
        with torch.no_grad():
            rows.copy_(unit(rows))
        done += 1
        now = time.monotonic()
        progress = max(done / steps, (now - start) / settings.seconds_per_point)
        if now - last > 2:
            last = now
            say(f"step {done} of {steps}, {now - start:.0f} s")
    return unit(rows.detach()), {"steps": done, "seconds": round(time.monotonic() - start, 1)}


def measure(h: Tensor, dictionary: cpk.Dictionary, temperature: float) -> dict:
    """Compare unit rows `(n, f)` with what lemma and theorem say of the optimum; every value a plain number or None."""
    n, c, f = h.shape[0], dictionary.num_codes, dictionary.num_features
    own = cpk.assign(h, dictionary, backend="cpu")[1][:, 0]
    uses = torch.bincount(own, minlength=c)
    codes = torch.empty(n, f)
    frame = torch.zeros(f, f, dtype=torch.float64)
    for start in range(0, c, CODES_AT_ONCE):
        part = dictionary.to_dense(start, min(c, start + CODES_AT_ONCE))
        here = (own >= start) & (own < start + CODES_AT_ONCE)
        codes[here] = unit(part.T[own[here] - start])
        frame += (part @ part.T).double()
    others, competitor = _competitors(h, own, codes, dictionary, temperature)
    others_at_code, _ = _competitors(codes, own, codes, dictionary, temperature)
    floor = math.log(c / min(n, c))
    loss, terms = cpk.cplearn_loss(h, h, dictionary, temperature=temperature, return_terms=True, backend="cpu")
    at_codes = cpk.cplearn_loss(codes, codes, dictionary, temperature=temperature, backend="cpu")
    within, between = block_cosines(h, own)
    return {
        "floor": floor, "loss_above_floor": loss.item() - floor, "loss_above_floor_on_codes": at_codes.item() - floor,
        "prior": terms["prior"].item(), "prior_floor": math.log(c / n) if n < c else 0.0,
        "max_p_mean": (1 / (1 + others)).mean().item(), "max_p_min": (1 / (1 + others)).min().item(),
        "max_p_on_codes": (1 / (1 + others_at_code)).mean().item(),
        "max_p_predicted": predicted_max_p(dictionary, temperature),
        "cosine_own_code": (h * codes).sum(1).mean().item(),
        "cosine_code_less_competitors": (h * unit(codes - competitor)).sum(1).mean().item(),
        "codes_used": int((uses > 0).sum()), "fewest_rows": int(uses.min()), "most_rows": int(uses.max()),
        "codes_with_even_use": int(((uses == n // c) | (uses == -(-n // c))).sum()) if n >= c else None,
        "deviation": deviation(h), "deviation_of_codes": deviation(codes),
        "deviation_of_dictionary": ((frame / c - torch.eye(f)).norm() / math.sqrt(f)).item(),
        "deviation_expected": math.sqrt(f / min(n, c)),
        "cosine_within": within, "cosine_between": between,
    }  # fmt: skip


def deviation(h: Tensor) -> float:
    """‖(f/n) HᵀH − I‖_F / sqrt(f) of unit rows `(n, f)`: 0 for a tight frame, sqrt(f − 1) when all rows are one."""
    n, f = h.shape
    product = h.double().T @ h.double() * (f / n)
    return ((product - torch.eye(f)).norm() / math.sqrt(f)).item()


def block_cosines(h: Tensor, own: Tensor) -> tuple[float | None, float | None]:
    """Mean |cos| of pairs of different rows of unit `h` of the same code, and of different codes; None without pairs.

    HHᵀ sorted by code is block-diagonal where the first is 1 and the second 0.
    """
    n = len(h)
    total = inside = 0.0
    for start in range(0, n, ROWS_AT_ONCE):
        part = (h[start : start + ROWS_AT_ONCE] @ h.T).abs().double()
        total += part.sum().item()
        inside += part[own[start : start + ROWS_AT_ONCE, None] == own].sum().item()
    of_themselves = (h * h).sum().item()
    same = int((torch.bincount(own).double() ** 2).sum()) - n
    different = n * n - n - same
    return ((inside - of_themselves) / same if same else None, (total - inside) / different if different else None)


def predicted_max_p(dictionary: cpk.Dictionary, temperature: float) -> float:
    """max p of a row that sits on a code, from the geometry of the dictionary alone.

    With `L = sqrt(f)/temperature` the own logit, a code of independent signs adds `exp(L cos)`, of mean cosh(L/f)^f,
    and an orthogonal one (the rest of a Hadamard block, when f is a power of two) exactly 1.
    """
    f, c = dictionary.num_features, dictionary.num_codes
    own = math.sqrt(f) / temperature
    whole = isinstance(dictionary, cpk.HadamardDictionary) and f & (f - 1) == 0
    orthogonal = min(f, c) - 1 if whole else 0
    # cosh^f overflows at low temperatures.
    log_mean = f * (own / f + math.log1p(math.exp(-2 * own / f)) - math.log(2)) - own
    return 1 / (1 + orthogonal * math.exp(-own) + (c - 1 - orthogonal) * math.exp(log_mean))


def problem(settings: Settings, kind: str, num_codes: int) -> tuple[cpk.Dictionary, float]:
    """The dictionary and the temperature of a point. Raises InputError."""
    try:
        temperature = cpk.default_temperature(settings.num_features, num_codes, eps=settings.eps)
        return DICTIONARIES[kind](settings.num_features, num_codes, seed=settings.seed), temperature
    except ValueError as error:
        raise InputError(f"The point with {num_codes} codes cannot be set up: {error}.") from None


def run(settings: Settings, kinds: list[str], codes: list[int], output: Path, command: str, say=print) -> dict:
    """Do the points that `output` lacks, writing it after each. Raises InputError."""
    for kind in kinds:
        for num_codes in codes:
            problem(settings, kind, num_codes)
    if not output.parent.is_dir():
        raise InputError(f"--output was {output}, expected a file in a folder that exists.")
    from train import machine

    results = {"command": command, "settings": asdict(settings),
               "machine": machine.describe(torch.get_num_threads()), "points": []}  # fmt: skip
    if output.exists():
        results = load(output)
        differing = [name for name, value in asdict(settings).items() if results["settings"].get(name) != value]
        if differing:
            raise InputError(f"{output} is of other settings, expected the same {', '.join(differing)}.")
    done = {(point["dictionary"], point["num_codes"]) for point in results["points"]}
    for kind in kinds:
        for num_codes in codes:
            name = f"{kind}, {num_codes} codes"
            if (kind, num_codes) in done:
                say(f"{name}: done before")
                continue
            h, effort = optimise(settings, kind, num_codes, lambda text: say(f"{name}: {text}"))
            dictionary, temperature = problem(settings, kind, num_codes)
            point = {"dictionary": kind, "num_codes": num_codes, "num_rows": len(h), "temperature": temperature,
                     **effort, **measure(h, dictionary, temperature)}  # fmt: skip
            results["points"].append(point)
            done.add((kind, num_codes))
            text = json.dumps(results, indent=1) + "\n"
            write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
            say(f"{name}, {len(h)} rows: {effort['steps']} steps in {effort['seconds']} s, loss − floor "
                f"{point['loss_above_floor']:.4f}, max p {point['max_p_mean']:.4f}, deviation {point['deviation']:.3f}")
    return results


def load(path: Path) -> dict:
    """The results in `path`. Raises InputError."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["settings"].items(), [point["num_codes"] for point in results["points"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} could not be read ({type(error).__name__}), expected results of "
                         f"train.theorem.") from None  # fmt: skip
    return results


def unit(rows: Tensor) -> Tensor:
    """The rows, L2-normalised."""
    return torch.nn.functional.normalize(rows, dim=1)


def _competitors(h: Tensor, own: Tensor, codes: Tensor, dictionary, temperature: float) -> tuple[Tensor, Tensor]:
    """Mass of all codes but the own, in units of the own's, `(n,)`, and their mean, unit codes weighted by p, `(n, f)`.

    In float64 and without the own code's term: near the optimum 1 − p is far below what float32 can take from 1.
    """
    n, f = h.shape
    root = math.sqrt(f)
    logit = (h.double() * codes.double()).sum(1) * (root / temperature)
    mass, mean = torch.zeros(n, dtype=torch.float64), torch.zeros(n, f, dtype=torch.float64)
    for start in range(0, dictionary.num_codes, CODES_AT_ONCE):
        part = dictionary.to_dense(start, min(dictionary.num_codes, start + CODES_AT_ONCE), dtype=torch.float64)
        for first in range(0, n, ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            weight = torch.exp(h[rows].double() @ part / temperature - logit[rows, None])
            here = ((own[rows] >= start) & (own[rows] < start + part.shape[1])).nonzero()[:, 0]
            weight[here, own[rows][here] - start] = 0
            mass[rows] += weight.sum(1)
            mean[rows] += weight @ part.T / root
    return mass, (mean / mass.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).float()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.theorem", description=__doc__.split(": ", 1)[1])
    add = parser.add_argument
    default = Settings()
    add("--output", type=Path, default=Path("embedding_theorem.json"),
        help="results, written after every point; points it already holds are skipped "
        "(%(default)s)")
    add("--num-features", type=int, default=default.num_features, help="f (%(default)s)")
    add("--codes", type=int, nargs="+", default=[16, 64, 256, 1024, 4096, 65536, 1 << 20],
        help="values of c (16 to 2^20)")
    add("--dictionary", nargs="+", choices=DICTIONARIES, default=list(DICTIONARIES), help="(both)")
    add("--num-rows", type=int, help="n of every point; without it 4 c as long as that is affordable, at least 256")
    add("--steps", type=int, help="of every point; without it 60 to 600, by the cost of one")
    add("--seconds-per-point", type=float, default=default.seconds_per_point,
        help="cuts slow schedules short (%(default)s)")
    add("--eps", type=float, help="of the default temperature; without it min(1e-8, 1/(100 c))")
    add("--seed", type=int, default=default.seed, help="of codes and first rows (%(default)s)")
    add("--num-threads", type=int, default=1, help="(%(default)s)")
    add("--table", type=Path, metavar="FILE", help="only print the results in FILE as Markdown tables")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            from train import theorem_figures

            print(theorem_figures.tables(load(options.table)))
            return 0
        for name, least in (("num_features", 2), ("num_rows", 2), ("steps", 1), ("num_threads", 1)):
            if (value := getattr(options, name)) is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} was {value}, expected at least {least}.")
        if not options.seconds_per_point > 0:
            raise InputError(f"--seconds-per-point was {options.seconds_per_point}, expected more than 0.")
        torch.set_num_threads(options.num_threads)
        given = sys.argv[1:] if arguments is None else arguments
        run(Settings(options.num_features, options.eps, options.num_rows, options.steps, options.seconds_per_point,
                     options.seed), options.dictionary, options.codes, options.output,
            shlex.join(["python", "-m", "train.theorem", *given]), lambda text: print(text, flush=True))  # fmt: skip
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
