"""Write sizes and lengths of time for people."""

from __future__ import annotations


def size(count: int) -> str:
    """Write bytes with three digits: 64 MiB, 1.5 GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def size_in_column(count: int | None) -> str:
    """Write bytes with one digit after the point: 128.3 MiB."""
    if count is None:
        return "?"
    number, units = float(count), ["KiB", "MiB", "GiB"]
    if number < 1024:
        return f"{count} B"
    number /= 1024
    while number >= 1023.95 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.1f} {units[0]}"


def mebibytes(count: int) -> str:
    """Write bytes as MiB with four digits: 0.5 MiB, 2048 MiB."""
    return f"{count / (1 << 20):.4g} MiB"


def duration(seconds: float) -> str:
    """Write a length of time exactly, in the largest unit that divides it: 1 h, 90 s."""
    for factor, unit in ((3600, "h"), (60, "min")):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds:g} s"


def age(seconds: float) -> str:
    """Write a length of time roughly: 59 s, 5 min, 2 h 05."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02}"


def seconds_in_column(seconds: float | None) -> str:
    """Write a short length of time: 1.25 s; below a tenth of a second in milliseconds."""
    if seconds is None:
        return "?"
    return f"{seconds:.2f} s" if seconds >= 0.0995 else f"{seconds * 1000:.1f} ms"
