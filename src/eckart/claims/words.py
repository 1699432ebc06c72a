"""How a verdict and a check are written, on the command line and on the page alike."""

from .claim import Check

MARKS = {"holds": "✓ holds", "fails": "✗ fails", "error": "! error"}  # read without colour
HALVES = {
    "dynamics": "Dynamics: low rank at every step of gradient descent",
    "convergence": "Convergence: low rank is what regularised training ends in",
    "data": "On real data",
}


def number(value: float) -> str:
    """A number to six digits.

    Example:
        >>> number(2.93012345), number(20.0), number(3.2e-15)
        ('2.93012', '20', '3.2e-15')
    """
    return f"{value:.6g}"


def slack(check: Check) -> str:
    """A check's tolerance, on the side where it counts.

    Example:
        >>> slack(Check("σ_1", 2.0, 2.0, 1e-3, relative=True)), slack(Check("tail", 0.0, 0.0, 1e-13, "≤"))
        ('± 0.1 %', '+ 1e-13')
        >>> slack(Check("rank", 6, 6))
        'none'
    """
    if not check.tolerance:
        return "none"
    sign = {"=": "±", "≤": "+", "≥": "−"}[check.relation]
    return f"{sign} {100 * check.tolerance:.3g} %" if check.relative else f"{sign} {check.tolerance:.3g}"


def sentence(check: Check) -> str:
    """A check in one line.

    Example:
        >>> sentence(Check("slope", -1.0, -0.42, 0.15))
        'slope: measured -0.42, predicted = -1 (tolerance ± 0.15)'
    """
    within = f" (tolerance {slack(check)})" if check.tolerance else ""
    return (
        f"{check.name}: measured {number(check.measured)}, predicted {check.relation} {number(check.predicted)}{within}"
    )
