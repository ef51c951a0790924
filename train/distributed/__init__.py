"""Processes: which device each has, how they end together, and what they exchange."""
