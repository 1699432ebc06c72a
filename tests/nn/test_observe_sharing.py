"""Matrices share statistics exactly as long as they read the very same tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eckart.nn import observe
from eckart.nn.sharing import Sharing
from eckart.nn.statistics import Statistics
from families import families

pytestmark = pytest.mark.filterwarnings("ignore:observe. inputs left out")  # not every test uses all layers


class Net(nn.Module):
    """Three linear layers and a forward that the test writes."""

    def __init__(self, body: Callable[["Net", Tensor, int], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 3 + k, bias=False) for k in range(3))
        self.body, self.calls = body, 0

    def forward(self, x: Tensor) -> Tensor:
        self.body(self, x, self.calls)
        self.calls += 1
        return x.sum()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(count)]


def moment(rows: list[Tensor]) -> Tensor:
    x = torch.cat(rows)
    return x.T @ x / len(x)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how many times rows are added to statistics."""
    calls: list[int] = []
    add = Statistics.add
    monkeypatch.setattr(Statistics, "add", lambda self, *args: (calls.append(1), add(self, *args))[1])
    return calls


def run(body: Callable, inputs: list[Tensor] | None = None, **options: object) -> tuple[dict, Net]:
    model = Net(body).double()
    return observe(model, batches() if inputs is None else inputs, ["input_covariance"], **options), model


def test_readers_of_one_tensor_share_what_is_computed_once(computed: list[int]) -> None:
    seen, _ = run(lambda net, x, _: (net.a(x), net.b(x), net.c(x)))
    assert seen["a"].shared_with == ("b", "c")
    assert seen["c"].shared_with == ("a", "b")
    assert seen["a"].covariance is seen["b"].covariance is seen["c"].covariance
    assert len(computed) == 3  # once per batch
    torch.testing.assert_close(seen["a"].input_second_moment, moment(batches()))


def test_equal_numbers_in_another_tensor_are_not_shared() -> None:
    seen, _ = run(lambda net, x, _: (net.a(x), net.b(x.clone())))
    assert seen["a"].shared_with == seen["b"].shared_with == ()


def test_a_view_with_the_same_rows_is_the_same_tensor() -> None:
    seen, _ = run(lambda net, x, _: (net.a(x), net.b(x.view(1, 5, 4)), net.c(x[1:])))
    assert seen["a"].shared_with == ("b",)
    assert seen["c"].shared_with == ()
    torch.testing.assert_close(seen["c"].input_second_moment, moment([x[1:] for x in batches()]))


def test_a_tensor_changed_in_place_is_another_tensor() -> None:
    def body(net: Net, x: Tensor, _: int) -> None:
        net.a(x)
        x.mul_(2)
        net.b(x)

    seen, _ = run(body)
    assert seen["a"].shared_with == ()
    torch.testing.assert_close(seen["b"].input_second_moment, 4 * seen["a"].input_second_moment)


def test_memory_used_again_is_not_taken_for_the_same_tensor() -> None:
    """Each intermediate dies before the next is made, so the allocator hands out the same address."""
    pointers = set()

    def body(net: Net, x: Tensor, _: int) -> None:
        for scale, layer in ((1, net.a), (2, net.b), (3, net.c)):
            y = x * scale
            pointers.add(y.data_ptr())
            layer(y)
            del y

    large = [x.repeat(20000, 1) for x in batches()]
    seen, _ = run(body, large)
    assert len(pointers) < 9  # or this test shows nothing
    for scale, name in ((1, "a"), (2, "b"), (3, "c")):
        assert seen[name].shared_with == ()
        torch.testing.assert_close(seen[name].input_second_moment, scale**2 * moment(large))


def test_a_group_parts_in_the_batch_where_its_members_read_differently() -> None:
    def body(net: Net, x: Tensor, call: int) -> None:
        net.a(x), net.b(x), net.c(2 * x if call == 1 else x)

    seen, _ = run(body)
    assert seen["a"].shared_with == ("b",)
    assert seen["c"].shared_with == ()
    first, second, third = batches()
    torch.testing.assert_close(seen["b"].input_second_moment, moment([first, second, third]))
    torch.testing.assert_close(seen["c"].input_second_moment, moment([first, 2 * second, third]))


def test_a_member_that_rests_for_a_batch_leaves_the_group() -> None:
    def body(net: Net, x: Tensor, call: int) -> None:
        net.a(x), (net.b(x) if call != 1 else None), net.c(x)

    seen, _ = run(body)
    assert seen["a"].shared_with == ("c",)
    assert (seen["a"].tokens, seen["b"].tokens) == (15, 10)
    first, _, third = batches()
    torch.testing.assert_close(seen["b"].input_second_moment, moment([first, third]))
    torch.testing.assert_close(seen["a"].input_second_moment, moment(batches()))


def test_layers_called_several_times_share_all_their_reads(computed: list[int]) -> None:
    def body(net: Net, x: Tensor, _: int) -> None:
        for scale in (1, 2):
            y = scale * x
            net.a(y), net.b(y)

    seen, _ = run(body)
    assert seen["a"].shared_with == ("b",)
    assert seen["a"].tokens == 30
    assert len(computed) == 6
    torch.testing.assert_close(seen["a"].input_second_moment, moment([s * x for x in batches() for s in (1, 2)]))


def test_reading_a_tensor_twice_is_not_reading_it_once() -> None:
    seen, _ = run(lambda net, x, call: (net.a(x), net.b(x), net.a(x) if call else None))
    assert (seen["a"].tokens, seen["b"].tokens) == (25, 15)
    assert seen["a"].shared_with == ()
    first, second, third = batches()
    torch.testing.assert_close(seen["a"].input_second_moment, moment([first, second, second, third, third]))
    torch.testing.assert_close(seen["b"].input_second_moment, moment([first, second, third]))


def test_a_layer_first_used_late_can_share_with_another_late_one() -> None:
    seen, _ = run(lambda net, x, call: (net.a(x), (net.b(x), net.c(x)) if call else None))
    assert seen["a"].shared_with == ()
    assert seen["b"].shared_with == ("c",)
    torch.testing.assert_close(seen["b"].input_second_moment, moment(batches()[1:]))


def test_convolutions_share_only_if_they_cut_the_same_patches() -> None:
    class Convs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1, bias=False)
            self.strided, self.flat = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> None:
            self.a(x), self.b(x), self.strided(x), self.flat(x)

    seen = observe(Convs(), [torch.randn(2, 3, 8, 8)] * 2, ["input_covariance"])
    assert [seen[name].shared_with for name in seen] == [("b",), ("a",), (), ()]


def test_no_activation_is_kept_alive() -> None:
    sharing = Sharing()
    x = torch.randn(3)
    sharing.identity(x)
    storage = x.untyped_storage()
    reference = torch.multiprocessing.reductions.StorageWeakRef(storage)
    del x, storage
    assert reference.expired()


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("llama", [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]),
        ("mixtral", [{"q_proj", "k_proj", "v_proj"}]),
        ("bert", [{"query", "key", "value"}]),
    ],
)
def test_siblings_of_a_transformer_are_found_from_the_data_flow(family: str, groups: list[set[str]]) -> None:
    model, inputs = families()[family]()
    seen = observe(model, inputs, ["input_norms"])
    for layer in ("0", "1"):
        names = [name for name in seen if f".{layer}." in name]
        for group in groups:
            members = {name for name in names if name.rpartition(".")[2] in group}
            assert members
            for name in members:
                assert set(seen[name].shared_with) == members - {name}


def test_nothing_is_shared_in_inference_mode_where_a_change_leaves_no_trace() -> None:
    with torch.inference_mode():
        x = torch.randn(5, 4, dtype=torch.float64)
    assert Sharing().identity(x) != Sharing().identity(x)
