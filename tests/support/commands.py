"""Fixtures for tests of command lines: one thread, and what a command that fails must say."""

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is slower on two threads, far slower when other processes want the cores; restored afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fails(capsys):
    """`fails(main, options, *words)`: the command ends with status 2 and one sentence that has these words."""

    def check(main, options, *words, status=2):
        capsys.readouterr()
        assert main([str(option) for option in options]) == status, options
        captured = capsys.readouterr()
        error = captured.err
        assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith(".\n"), captured
        assert "Traceback" not in captured.out and all(word in error for word in words), captured
        return captured

    return check
