"""Numbers as a report prints them, the same in the terminal and on the page.

Scores are rates with three decimals and no leading zero (.448), as in arXiv:2605.22731; differences carry a sign; minus
is U+2212; "–" stands where nothing applies. A difference whose interval covers its null value is marked `UNRESOLVED` in
text, so that the mark survives print, grey screens and screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from statewise.storage.records import LEVEL, Estimate

MINUS = "\N{MINUS SIGN}"
NOTHING = "–"
UNRESOLVED = "n.r."
# Its own interval leaves out the null value, but not once all of its family are held together.
ALONE = "alone"
NO_INTERVAL = "no interval"
# Above this a multiple of the data is no plan any more, only "far too little data".
LARGEST_FACTOR = 100.0
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def score(value: float) -> str:
    """A rate or ratio with three decimals: .448, 1.001, −.004."""
    return _fixed(value, 3)


def p_value(p: float) -> str:
    """A p-value like a score, with three significant digits where that would say .000: .016, .000120, 1.50 × 10⁻⁶."""
    return score(p) if p >= 0.0005 else quantity(p)


def delta(value: float) -> str:
    """A difference with its sign: +.064, −.015; exact zero has none."""
    return ("+" if value > 0 else "") + _fixed(value, 3)


def quantity(value: float) -> str:
    """A number of unknown size with three significant digits: .00956, 1.23, 4,120, 1.20 × 10¹⁵."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if float(value).is_integer() and exponent < 9:
        return _minus(f"{value:,.0f}")
    if not -5 <= exponent < 9:
        mantissa, power = f"{value:.2e}".split("e")
        return _minus(mantissa) + " × 10" + str(int(power)).translate(SUPERSCRIPT)
    return _bare(f"{value:,.{max(0, 2 - exponent)}f}")


def duration(seconds: float) -> str:
    """A time span in its two largest units: 41 s, 3 min 20 s, 1 h 12 min."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def interval(low: float | None, high: float | None, *, is_delta: bool = False) -> str:
    """[.421, .475]; differences keep their signs, [−.010, +.034]."""
    if low is None or high is None:
        return NO_INTERVAL
    show = delta if is_delta else score
    return f"[{show(low)}, {show(high)}]"


def span(values: Iterable[int]) -> str:
    """Counts as one number or a range: 3, 1–3; "–" for none. Zeros count."""
    counts = sorted(set(values))
    if not counts:
        return NOTHING
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"


def percent(level: float) -> str:
    """A level with one decimal where it needs one: 95 %, 98.3 %."""
    return f"{100 * level:.1f}".removesuffix(".0") + " %"


def is_resolved(estimate: Estimate, null: float = 0.0) -> bool:
    """Whether the interval leaves out `null`; an estimate without an interval resolves nothing."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.low > null or estimate.high < null


def mark(estimate: Estimate, null: float = 0.0) -> str:
    """`UNRESOLVED` or, where only the adjusted p of its family is too large, `ALONE`; "" where it is resolved."""
    if not is_resolved(estimate, null):
        return UNRESOLVED
    return ALONE if estimate.p_adjusted is not None and estimate.p_adjusted >= 1 - LEVEL else ""


def data_factor(estimate: Estimate, null: float = 0.0) -> float | None:
    """How many times the data would resolve an unresolved difference of the size seen; None if it is resolved.

    k = (half-width towards the null / distance from the null)^2: half-widths fall as 1 / sqrt(data), so that k times
    the items and seeds bring the interval's end to the null. Half of such repetitions would still miss it: at least.

    Returns:
        >= 1; infinity where the estimate is the null itself; None without an interval.
    """
    if estimate.low is None or estimate.high is None or is_resolved(estimate, null):
        return None
    distance = abs(estimate.value - null)
    half_width = estimate.value - estimate.low if estimate.value > null else estimate.high - estimate.value
    return math.inf if distance == 0 else max(1.0, (half_width / distance) ** 2)


def factor(multiple: float) -> str:
    """A multiple of the data in words: "1.4 ×", "more than 100 ×"."""
    if multiple > LARGEST_FACTOR:
        return f"more than {LARGEST_FACTOR:.0f} ×"
    return f"{multiple:.1f} ×" if multiple < 10 else f"{multiple:.0f} ×"


def _fixed(value: float, decimals: int) -> str:
    return _bare(f"{value:.{decimals}f}") if math.isfinite(value) else NOTHING


def _bare(digits: str) -> str:
    """Without the zero before the point; "-0.000" keeps its sign, since it says on which side of zero a bound lies."""
    sign, rest = (MINUS, digits[1:]) if digits.startswith("-") else ("", digits)
    return sign + rest.removeprefix("0") if rest.startswith("0.") else sign + rest


def _minus(digits: str) -> str:
    return digits.replace("-", MINUS)
