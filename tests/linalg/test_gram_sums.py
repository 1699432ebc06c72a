"""Sums of Gram matrices are of the lower triangle alone until they are read, at sizes of several blocks too."""

import pytest
import torch

from eckart.linalg import add_gram, symmetrize
from eckart.nn.statistics import Kept, Statistics


@pytest.mark.parametrize("n", [0, 1, 95, 193, 577])
def test_the_sum_is_the_whole_product(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    G, parts = torch.zeros(3, n, n).double(), [torch.randn(3, 40, n, generator=generator).double() for _ in range(2)]
    for rows in parts:
        add_gram(G, rows)
    rows = torch.cat(parts, 1)
    torch.testing.assert_close(symmetrize(G), rows.mT @ rows)


def test_statistics_of_a_stack_may_be_read_on_the_way() -> None:
    x = torch.randn(3, 60, 200, generator=torch.Generator().manual_seed(0)).double() + 5
    statistics = Statistics(Kept(moments=True), 3, 200, x)
    statistics.add([x[:, :25]], slice(0, 3))
    torch.testing.assert_close(statistics.moments(), x[:, :25].mT @ x[:, :25])
    statistics.add([x[1:2, 25:]], slice(1, 2))
    moments = statistics.moments()
    torch.testing.assert_close(moments[1], x[1].T @ x[1])
    torch.testing.assert_close(moments[0], x[0, :25].T @ x[0, :25])
