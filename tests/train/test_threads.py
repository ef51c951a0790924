"""train/threads.py: every thread pool obeys inside, and is as it was outside."""

import pytest
import torch
from running import python

from train import threads
from train.errors import InputError


@pytest.mark.slow
def test_pools_that_are_loaded_later_obey_too():
    """In a process of its own: here scikit-learn is long loaded."""
    script = """
import torch
from threadpoolctl import threadpool_info
from train import threads
torch.set_num_threads(2)
with threads.limited_to(1):
    from train.evaluation import quality
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    quality.linear_probe(x, y, x, y)
    quality.kmeans_nmi(x, y, 2)
    pools = threadpool_info()
    assert any("scikit_learn" in pool["filepath"] for pool in pools), pools
    assert {pool["num_threads"] for pool in pools} == {1} and torch.get_num_threads() == 1, pools
assert torch.get_num_threads() == 2
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_none_changes_nothing_and_less_than_one_is_refused():
    before = torch.get_num_threads()
    with threads.limited_to(None):
        assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="--num-threads was 0, expected a whole number of at least 1"):
        with threads.limited_to(0):
            pass
