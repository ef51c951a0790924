"""The numbers by which kernels, and the code that launches them, name things: outside of kernels as `.value`."""

import triton.language as tl

# Kinds of codes.
KRONECKER = tl.constexpr(0)
HADAMARD = tl.constexpr(1)
RADEMACHER = tl.constexpr(2)
PACKED = tl.constexpr(3)

# Rows of the row constants.
SCALE = tl.constexpr(0)  # a product times this is the logit in powers of two; a power of two itself
BEST = tl.constexpr(1)  # the row's largest logit
INVERSE_SUM = tl.constexpr(2)  # p of the best code, 1 / sum 2^d; 0 for padding
SHIFT = tl.constexpr(3)  # log2(c) - log2(sum 2^d)
CENTRE = tl.constexpr(4)  # sum_j p_j g_j
TARGET = tl.constexpr(5)  # sum_j p_j u'_j, u' of the partner row
NUM_CONSTANTS = 6

# Rows of the row sums.
CROSS_TERM = tl.constexpr(0)  # sum_j p_j ln(c p'_j), p' of the partner row
CENTRE_SUM = tl.constexpr(1)  # sum_j p_j g_j without the best code
TARGET_SUM = tl.constexpr(2)  # sum_j p_j u'_j without the best code
BEST_WEIGHT = tl.constexpr(3)  # p g of the best code
NUM_ROW_SUMS = 4

# What is summed over the codes, with weight x_j: see weighted_sums._tile_weights.
EXPECTED = tl.constexpr(0)
CENTRED = tl.constexpr(1)
REVERSE_KL = tl.constexpr(2)
CROSS_ENTROPY = tl.constexpr(3)
SECOND = tl.constexpr(4)
GIVEN = tl.constexpr(5)

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
