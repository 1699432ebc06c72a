"""Large counts as people read them."""


def rounded(count: float) -> str:
    """A count to four digits with a letter for its thousands.

    Example:
        >>> rounded(134_515_008), rounded(96)
        ('134.5 M', '96')
    """
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return str(count)


def in_bytes(count: float) -> str:
    """A size in memory or on disk, in powers of 1000.

    Example:
        >>> in_bytes(269_030_016), in_bytes(96)
        ('269 MB', '96 bytes')
    """
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
