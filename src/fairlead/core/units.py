"""Numbers with units, written for people."""

from __future__ import annotations

__all__ = ["format_bytes", "format_duration_s", "format_number", "format_value"]

_BYTE_STEPS = ("B", "KiB", "MiB", "GiB", "TiB")
_GROUPED = 100_000
_SMALLEST, _LARGEST = 1e-6, 1e12


def format_bytes(size_bytes: float) -> str:
    """Write a size with the largest binary unit that keeps it above one.

    Examples:
        >>> format_bytes(1536)
        '1.5 KiB'
    """
    value = float(size_bytes)
    for step in _BYTE_STEPS[:-1]:
        if abs(value) < 1024:
            return f"{value:.0f} {step}" if step == "B" else f"{value:.1f} {step}"
        value /= 1024
    return f"{value:.1f} {_BYTE_STEPS[-1]}"


def format_duration_s(seconds: float) -> str:
    """Write a duration with the unit a reader would choose.

    Examples:
        >>> format_duration_s(0.00123)
        '1.23 ms'
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min"


def format_number(value: float) -> str:
    """Write a number with four digits, without powers of ten where people would write none.

    Whole numbers keep all their digits; from six on they are grouped.

    Examples:
        >>> format_number(660_812.4), format_number(0.00005), format_number(670723)
        ('660,800', '0.00005', '670,723')
    """
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= _GROUPED else str(value)
    short = f"{value:.4g}"
    if "e" not in short or not _SMALLEST <= abs(value) < _LARGEST:
        return short
    return f"{float(short):,.0f}" if abs(value) > 1 else f"{float(short):.10f}".rstrip("0")


def format_value(value: float, unit: str) -> str:
    """Write a measured value with its unit.

    Examples:
        >>> format_value(0.9731, "ratio")
        '0.9731'
        >>> format_value(2048, "bytes")
        '2.0 KiB'
    """
    if unit == "bytes":
        return format_bytes(value)
    if unit == "s":
        return format_duration_s(value)
    if unit == "ms":
        return format_duration_s(value / 1e3)
    if unit in {"count", "rows", "requests"}:
        return f"{value:,.0f}"
    if unit in {"", "ratio", "1"}:
        return format_number(float(value))
    return f"{format_number(float(value))} {unit}"
