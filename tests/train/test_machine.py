"""train.machine: what a processor says of itself, the description of this machine, the commit."""

import re

import torch

from train import machine


def test_cpu_fields_of_a_cpuinfo():
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f\n\nmodel name\t: Other\nflags\t: x"
    assert machine.cpu_fields(text) == {"cpu": "Some CPU", "cpu_flags": ["avx", "avx2", "avx512f"]}
    text = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Some CPU\n"
    assert machine.cpu_fields(text)["cpu"] == "Some CPU (family 26, model 2)"
    assert machine.cpu_fields("")["cpu"]


def test_description_of_this_machine():
    described = machine.describe(threads=2)
    assert described["threads"] == 2 and described["torch"] == torch.__version__ and described["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", described["date"])


def test_git_commit_outside_a_checkout(tmp_path):
    assert machine.git_commit(tmp_path) is None
