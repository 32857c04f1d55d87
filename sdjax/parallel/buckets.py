"""Padded sizes: few enough that a run compiles only a handful of programs."""


def bucket(n: int) -> int:
    """Returns the padded size for n: at most a quarter more above 128, a multiple of 32.

    And never as much as 2,048 more: of rows of 43,008 tokens a quarter is a chip's memory.
    In: 1 32 33 100 300 1000 43008 -> out: 32 32 64 128 320 1024 43008.
    """
    step = min(max(32, 1 << max((n - 1).bit_length() - 3, 0)), 2048)
    return -(-n // step) * step
