"""Small measurements of a processor: rates of its vector units, ways to multiply rows by signs (C++ in csrc/bench)."""
