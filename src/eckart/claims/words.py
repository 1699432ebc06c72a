"""How a verdict and a check are written, on the command line and on the page alike."""

from .claim import Check

MARKS = {"holds": "✓ holds", "fails": "✗ fails", "error": "! error"}  # read without colour
HALVES = {
    "dynamics": "Dynamics: low rank at every step of gradient descent",
    "convergence": "Convergence: low rank is what regularised training ends in",
    "data": "On real data",
}


def number(value: float) -> str:
    """A number to six digits, a tiny one to three.

    Example:
        >>> number(2.93012345), number(20.0), number(3.21234e-8), number(0.0)
        ('2.93012', '20', '3.21e-8', '0')
    """
    text = f"{value:.6g}" if abs(value) >= 1e-4 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


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
    return f"{sign} {number(100 * check.tolerance)} %" if check.relative else f"{sign} {number(check.tolerance)}"


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
