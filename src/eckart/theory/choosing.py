"""Choose the decay and the steps of a deep factorisation on held-out entries, then fit all entries with that choice."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from eckart.theory.fitting import EVERY, Fit, looks
from eckart.theory.observed import root_mean_square

RELEASE = (0.25, 0.25, 0.0)  # what the decay is multiplied by, as long as that helps
PATIENCE = 10  # looks at the held-out error without a lower one after which a fit ends


class Trial(NamedTuple):
    """One fit to all but the held-out entries: the lowest held-out error, and the fit there."""

    error: float
    decay: float
    steps: int
    fit: Fit
    errors: list[float]
    stopped: str


def search(trial: Callable[..., Trial], start: Fit, decays: Sequence[float], phase: int) -> list[Trial]:
    """Fit with one decay after the other, until two in a row did not lower the held-out error."""
    trials: list[Trial] = []
    for index, decay in enumerate(decays):
        trials.append(trial(start, decay, phase=phase + index))
        lowest = min(range(len(trials)), key=lambda each: trials[each].error)
        if index - lowest >= 2:
            break
    return trials


def release(trial: Callable[..., Trial], first: Trial, tolerance: float, phase: int) -> list[Trial]:
    """Go on from the best fit with less decay: what it has put to zero stays there, what it has shrunk recovers."""
    chosen = [first]
    for index, share in enumerate(RELEASE):
        if not chosen[-1].decay:
            break
        freer = trial(chosen[-1].fit, share * chosen[-1].decay, phase=phase + index)
        if freer.error >= (1 - tolerance) * chosen[-1].error:
            break
        chosen.append(freer)
    return chosen[1:]


def replay(fit: Fit, chosen: Sequence[Trial], report: Callable[[float], None]) -> tuple[Fit, list[float]]:
    """Fit once more, to all that was observed, for as many steps with each decay as were chosen."""
    losses: list[float] = []
    for index, phase in enumerate(chosen):
        before, start = len(losses), fit
        for step, at, loss in looks(start, phase.decay, phase.steps):
            losses[before + step // EVERY :], fit = [loss], at
            report((index + step / max(phase.steps, 1)) / len(chosen))
    return fit, losses


def fit_trial(
    start: Fit,
    decay: float,
    *,
    phase: int,
    matrix: Tensor,
    held: Tensor,
    steps: int,
    tolerance: float,
    report: Callable[[int, int, str], None],
) -> Trial:
    """Fit all but the held-out entries, until the error on these stops falling."""
    errors: list[float] = []
    best, found, stopped = 0, start, f"reached steps = {steps}"
    for step, fit, _ in looks(start, decay, steps):
        report(phase, step, f"decay {decay:g}")
        look = step // EVERY  # goes back to 0 where the learning rate is halved
        errors[look:] = [float(root_mean_square((fit.completed() - matrix) / fit.scale.scale, held))]
        if look == 0 or errors[look] < (1 - tolerance) * errors[best]:
            best, found = look, fit.clone()
        elif look - best >= PATIENCE:
            stopped = f"no lower held-out error for {PATIENCE * EVERY} steps"
            break
    return Trial(errors[best], decay, best * EVERY, found, errors, stopped)
