"""Tests, measurements and compiler reports for the GPU backends: `python -m bench.gpu`."""
