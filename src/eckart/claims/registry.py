"""The list of claims: which there are, and the file that each lives in.

It is written out by hand, so that one can read it, and so that naming a claim costs nothing: a claim's file is imported
when the claim is asked for. A new claim is one file and one line here.
"""

from collections.abc import Sequence
from importlib import import_module

from eckart.nn.patterns import closest

from .claim import Claim

# Id → module below eckart.claims, in the overview's order: T dynamics (§2), C convergence (§5), D on real data.
CLAIMS = {
    "T1": "dynamics.t1_classification",
    "T2": "dynamics.t2_factorization",
    "T3": "dynamics.t3_compression",
    "T4": "dynamics.t4_completion",
    "T5": "dynamics.t5_spectral_start",
    "T6": "dynamics.t6_nonlinear",
    "T7": "dynamics.t7_features",
    "T8": "dynamics.t8_gradients",
    "C1": "convergence.c1_nuclear",
    "C2": "convergence.c2_schatten",
    "C3": "convergence.c3_attention",
    "C4": "convergence.c4_dropout",
    "C5": "convergence.c5_dropconnect",
    "C6": "convergence.c6_dropblock",
    "C7": "convergence.c7_masked",
    "D1": "data.d1_mlp_updates",
    "D2": "data.d2_conv_updates",
    "D3": "data.d3_smollm2_updates",
    "D4": "data.d4_dropout_rank",
    "D5": "data.d5_mask_ratio",
    "D6": "data.d6_completion",
}


def names() -> list[str]:
    """The ids of all claims, in order.

    Example:
        >>> names()[:3]
        ['T1', 'T2', 'T3']
    """
    return list(CLAIMS)


def load(id: str) -> Claim:
    """A claim by its id.

    Args:
        id: as in `names()`; "t1" is "T1".

    Returns:
        claim: its title, statement, source, regime, and its `run`.

    Raises:
        ValueError: there is no such claim; the message gives the closest ids.

    Example:
        >>> load("t1").id
        'T1'
        >>> load("T12")
        Traceback (most recent call last):
        ValueError: id: there is no claim 'T12'; closest: T2, T1, T8 (eckart claims lists all)
    """
    [found] = select([id])
    claim: Claim = import_module(f".{CLAIMS[found]}", __package__).CLAIM
    return claim


def select(ids: Sequence[str]) -> list[str]:
    """The ids that were asked for, each once, in the registry's order.

    Args:
        ids: ids in any case, or "all".

    Returns:
        ids, as in `names()`.

    Raises:
        ValueError: an id is unknown, or there are none.

    Example:
        >>> select(["c1", "T2", "c1"]), select(["all"]) == names()
        (['T2', 'C1'], True)
    """
    wanted = {id.upper() for id in ids}
    if not wanted:
        raise ValueError('ids: empty; give ids such as "T1", or "all"')
    for id in ids:
        if id.upper() not in (*CLAIMS, "ALL"):
            close = closest(id.upper(), CLAIMS, whole=True)
            raise ValueError(f"id: there is no claim {id!r}; closest: {close} (eckart claims lists all)")
    return names() if "ALL" in wanted else [id for id in CLAIMS if id in wanted]
