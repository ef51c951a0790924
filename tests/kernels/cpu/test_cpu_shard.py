"""Backend "cpu", a range of codes at a time: every setting and instruction set, threads, interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from cases import PRIORS
from oracle import REGIMES, SETTINGS
from range_checks import RangeChecks

from cplearn_kernels.backends.cpu import functions as cpu

KINDS = ("hadamard", "rademacher", "dense")
SHAPES = [(7, 213, 15), (33, 700, 5), (128, 1000, 33), (129, 1111, 16), (200, 1500, 3)]  # (f, c, rows)
WORLDS = (1, 2, 3, 5, 40)  # 40: more ranks than the Hadamard dictionaries have blocks
BEYOND = (1 << 33) + (1 << 20)  # at the edge of a block
ALL = [(kind, *shape) for kind in KINDS for shape in SHAPES]
FAR = [(kind, f) for kind in KINDS[:2] for f in (7, 33, 128, 300)]


class TestCpuShard(RangeChecks):
    backend, module, device = "cpu", cpu, torch.device("cpu")
    SETTINGS = SETTINGS
    WORLDS = WORLDS
    MEAN_REGIMES = REGIMES
    CASES: ClassVar = {
        "test_loss_and_gradient": {"kind, f, c, n, world": [(*case, 0) for case in ALL]},
        "test_logits_of_300": {"kind, f, world": [("dense", 20, 2)]},
        "test_half_precision_and_strides": {"kind, f, c": [(kind, 129, 1111) for kind in KINDS]},
        "test_rows_aligned_with_codes": {"kind, f": [(kind, 128) for kind in KINDS]},
        "test_mean_assignment": {"kind, f, c, n, world": [(*case, world) for case in ALL for world in WORLDS]},
        "test_what_is_left_out_or_wrong_is_noticed": {"kind, f": [("hadamard", 128)]},
        "test_what_each_step_returns": {"kind, f": [(kind, 33) for kind in KINDS]},
        "test_without_gradients_the_numbers_are_the_same": {"kind, f": [("rademacher", 129)]},
        "test_strides_do_not_matter": {"kind, f": [(kind, 40) for kind in KINDS]},
        "test_a_row_that_is_not_finite": {
            "kind": KINDS, "f": [33], "prior": PRIORS, "bad": [torch.nan, torch.inf, -torch.inf]
        },
        "test_same_bits_every_time": {
            "kind, f, c, n, world": [(KINDS[i % 3], *shape, (1, 2, 3, 5)[i % 4]) for i, shape in enumerate(SHAPES)]
        },
        "test_functions_of_a_range": {
            "kind, f, start, stop": [(*case, start, start + 301) for case in FAR for start in (BEYOND, 512)]
            + [("dense", f, *ends) for f in (7, 33, 128, 300) for ends in ((512, 813), (512, 543), (0, 301))]
        },
        "test_loss_of_ranges_beyond_32_bits": {"kind": KINDS[:2], "f": (33, 128), "start": [BEYOND]},
    }  # fmt: skip
    test_ranges_of_several_spans = test_codes_beyond_32_bits = None  # no spans; scores are those of `assign`

    def plan(self, f, c, world):
        for position, regime in enumerate(REGIMES):
            worlds = [self.WORLDS[(i + position) % len(self.WORLDS)] for i in range(len(SETTINGS))]
            yield regime, list(zip(SETTINGS, worlds, strict=True))

    def check(self, conformance, dictionary, case, plan=None, invariances=False):
        answers = super().check(conformance, dictionary, case, plan, invariances)
        for i, target in enumerate(cpu.targets()[1:]):
            setting = SETTINGS[(5 * i + sum(case.views[0].shape) + int(case.temperature)) % len(SETTINGS)]
            with cpu.use_target(target):
                self.check_one(conformance, answers, dictionary, case, setting, 3, f"/{target}")
        return answers

    def attempts(self):
        threads = torch.get_num_threads()
        for count in (1, 2):
            torch.set_num_threads(count)
            yield
        torch.set_num_threads(threads)


INTERRUPTED = """
import signal
import torch
from cplearn_kernels import RademacherDictionary
from cplearn_kernels.backends.cpu import functions as cpu
from cplearn_kernels.distributed.ranges import CodeRange

signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, but when the call has begun
shard = cpu.Shard(CodeRange(RademacherDictionary(64, 1 << 36), 1 << 35, 1 << 36), 0.3, 2)  # would take hours
h = torch.nn.functional.normalize(torch.randn(4, 64), dim=1)
shard._views, shard._found = [h, h], [torch.zeros(4, dtype=torch.int64)] * 2  # as if row_sums had come to its end
shard.combine(torch.full((8,), 30.0).double(), torch.ones(8).double(), torch.zeros(8, dtype=torch.bool))
for step in (lambda: shard.row_sums(0, h), lambda: shard.code_sums(1.0, "reverse_kl", None, True)):
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        step()
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="uses a timer's signal")
def test_steps_can_be_interrupted():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n" * 2, done.stderr
