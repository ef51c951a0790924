"""The weights that codes are summed with, as weighted_sums.py numbers them, for code outside of kernels."""

EXPECTED, CENTRED, REVERSE_KL, CROSS_ENTROPY, SECOND, GIVEN = range(6)
