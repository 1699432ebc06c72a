"""The trainer shows the encoder what it may see, finds what the theory names, and goes on as if it never stopped."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from eckart.regularizers import cosine_rate, exact_mask, masked_linear_optimum, train_masked

MASK, PAD = 9, 0


class PatchEncoder(nn.Module):
    """Latents of visible patches, and a note of what was visible."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 8), nn.Embedding(6, 8)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, visible: Tensor, positions: Tensor) -> Tensor:
        self.seen.append((visible, positions))
        return self.embed(visible) + self.place(positions)


class PatchDecoder(nn.Module):
    """Patches from the mean of the latents and from the place, a mask token where hidden; notes what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place, self.out = (
            nn.Parameter(torch.zeros(8)),
            nn.Parameter(torch.zeros(6, 8)),
            nn.Linear(8, 4),
        )
        self.got: list[tuple[Tensor, Tensor]] = []

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        self.got.append((latent, hidden))
        latent = torch.where(hidden.unsqueeze(-1), self.token, latent)
        return self.out(latent + latent.mean(1, keepdim=True) + self.place)


class Spy(nn.Module):
    """Passes its input on and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x


def _linear(n: int, **options: Any) -> nn.Linear:
    layer = nn.Linear(n, n, bias=False, **options)
    nn.init.zeros_(layer.weight)
    return layer


def _text(samples: int = 40) -> Tensor:
    """Sequences a b a b …, of ids 1 to 8, padded after a random length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (samples, 2), generator=generator).repeat(1, 5)
    lengths = torch.randint(4, 11, (samples, 1), generator=generator)
    return ids.masked_fill(torch.arange(10) >= lengths, PAD)


def test_real_masks_lead_a_linear_map_to_the_closed_form(generator: torch.Generator) -> None:
    X = torch.randn(4, 50, dtype=torch.float64, generator=generator)
    X[1] += X[0]
    encoder = _linear(4, dtype=torch.float64)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [100, 150], gamma=0.2)
    train_masked(
        encoder, nn.Identity(), X.mT, rate=0.5, steps=200, law="bernoulli", loss="all", batch_size=2000,
        optimizer=optimizer, scheduler=scheduler, generator=generator,
    )  # fmt: skip
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * 0.04)
    best = masked_linear_optimum(X @ X.mT, rate=0.5)
    assert float((encoder.weight.detach() - best).norm() / best.norm()) < 0.03


def test_vectors_are_masked_in_place_and_rescaled() -> None:
    spy = Spy()
    X = torch.ones(30, 8)
    train_masked(spy, _linear(8), X, rate=0.75, steps=3, batch_size=5)
    for seen in spy.seen:
        assert seen.shape == (5, 8)
        assert set(seen.flatten().tolist()) == {0.0, 4.0}
        assert (seen == 0).sum(1).tolist() == [6] * 5


def test_whole_items_are_hidden_where_the_data_have_three_dimensions() -> None:
    spy = Spy()
    train_masked(spy, _linear(3), torch.ones(10, 4, 3), rate=0.5, steps=2)
    hidden = (spy.seen[0] == 0).all(-1)
    assert torch.equal(hidden, (spy.seen[0] == 0).any(-1))
    assert hidden.sum(1).unique().tolist() == [2]


def test_the_loss_counts_hidden_items_or_all() -> None:
    X = torch.tensor([[1.0, 3.0]])
    hidden = exact_mask(torch.ones(1, 2, dtype=torch.bool), 0.5, generator=torch.Generator().manual_seed(5))
    for loss, expected in (("masked", float(X[hidden] ** 2)), ("all", 5.0)):
        generator = torch.Generator().manual_seed(5)
        run = train_masked(
            nn.Identity(), _linear(2), [X], rate=0.5, steps=1, loss=loss, generator=generator  # type: ignore[arg-type]
        )  # fmt: skip
        assert float(run.losses[0]) == expected


def test_the_encoder_of_patches_sees_visible_ones_only_and_the_decoder_gets_them_in_place() -> None:
    encoder, decoder = PatchEncoder(), PatchDecoder()
    X = torch.arange(2 * 6 * 4, dtype=torch.float32).view(2, 6, 4)
    train_masked(encoder, decoder, [X], rate=2 / 3, steps=1, kind="patches")
    (visible, positions), (latent, hidden) = encoder.seen[0], decoder.got[0]
    assert visible.shape == (2, 2, 4)
    for sample in range(2):
        assert torch.equal(visible[sample], X[sample, positions[sample]])
        assert not bool(hidden[sample, positions[sample]].any())
        assert int(hidden[sample].sum()) == 4
        assert bool((latent[sample, hidden[sample]] == 0).all())
        assert bool((latent[sample, positions[sample]] != 0).any())


def test_a_masked_autoencoder_of_patches_learns() -> None:
    X = torch.randn(64, 1, 4).repeat(1, 6, 1)  # one visible patch tells all others
    encoder, decoder = PatchEncoder(), PatchDecoder()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    run = train_masked(encoder, decoder, X, rate=0.5, steps=300, kind="patches", optimizer=optimizer)
    assert float(run.losses[-10:].mean()) < 0.1 * float(run.losses[0])
    assert decoder.token.grad is not None
    assert float(decoder.token.detach().abs().max()) > 0


def test_tokens_are_replaced_by_the_masks_id_and_padding_is_left_alone() -> None:
    text, spy = _text(), Spy()
    encoder = nn.Sequential(spy, nn.Embedding(10, 4))
    train_masked(encoder, nn.Linear(4, 10), [text], rate=0.5, steps=1, kind="tokens", mask_id=MASK, keep_ids=[PAD])
    hidden = spy.seen[0] == MASK
    assert torch.equal(spy.seen[0][~hidden], text[~hidden])
    assert not bool((hidden & (text == PAD)).any())
    assert torch.equal(hidden.sum(1), ((text != PAD).sum(1) * 0.5).round().long())


def test_a_masked_language_model_learns() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(10, 32), nn.Linear(10, 10)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            return x + self.mix(x.mT).mT

    encoder, decoder = Mix(), nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    run = train_masked(
        encoder,
        decoder,
        _text(500),
        rate=0.2,
        steps=300,
        kind="tokens",
        mask_id=MASK,
        keep_ids=[PAD],
        optimizer=optimizer,
    )
    assert 1.5 < float(run.losses[0]) < 4
    assert float(run.losses[-20:].mean()) < 0.5 * float(run.losses[0])


@pytest.mark.parametrize("kind", ["vector", "patches", "tokens"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind: Any) -> None:
    def parts() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(3)
        if kind == "vector":
            return nn.Linear(8, 3), nn.Linear(3, 8)
        return (PatchEncoder(), PatchDecoder()) if kind == "patches" else (nn.Embedding(10, 4), nn.Linear(4, 10))

    data = {"vector": torch.randn(20, 8), "patches": torch.randn(20, 6, 4), "tokens": _text()}[kind]
    ids: dict[str, Any] = {"mask_id": MASK, "keep_ids": [PAD]} if kind == "tokens" else {}
    options: dict[str, Any] = {"rate": cosine_rate(0.3, 0.7), "steps": 12, "kind": kind, **ids}

    def train(modules: tuple[nn.Module, nn.Module], **more: Any) -> Any:
        optimizer = torch.optim.AdamW([*modules[0].parameters(), *modules[1].parameters()], lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        return train_masked(*modules, data, optimizer=optimizer, scheduler=scheduler, **options, **more)

    whole = parts()
    expected = train(whole)
    first = train(parts(), stop=5)
    assert first.state["step"] == 5
    file = io.BytesIO()
    torch.save(first.state, file)
    file.seek(0)
    torch.manual_seed(99)
    again = parts()
    with torch.no_grad():
        for parameter in again[0].parameters():
            parameter.zero_()  # the state brings the weights too
    resumed = train(again, state=torch.load(file, weights_only=True))
    assert torch.equal(resumed.losses, expected.losses)
    for module, other in zip(whole, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_a_schedule_decides_the_ratio_of_each_step() -> None:
    spy = Spy()
    train_masked(spy, _linear(10), [torch.ones(4, 10)], rate=lambda share: 0.1 + 0.8 * share, steps=9)
    assert [int((seen == 0).sum(1)[0]) for seen in spy.seen] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_loaders_with_labels_are_read_again_and_progress_is_told() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 4), torch.zeros(10)), batch_size=5)
    told: list[tuple[int, int, str]] = []
    run = train_masked(
        nn.Linear(4, 2), nn.Linear(2, 4), loader, rate=0.5, steps=5, progress=lambda *args: told.append(args)
    )
    assert len(run.losses) == 5
    assert told == [(step, 5, "masked training") for step in range(1, 6)]


def test_bfloat16_modules_and_data_train_with_a_loss_in_float32() -> None:
    X = torch.randn(50, 8).repeat_interleave(2, 1).to(torch.bfloat16)
    encoder, decoder = nn.Linear(16, 8).bfloat16(), nn.Linear(8, 16).bfloat16()
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.5)
    run = train_masked(encoder, decoder, X, rate=0.25, steps=150, loss="all", optimizer=optimizer)
    assert run.losses.dtype == torch.float32
    assert float(run.losses[-10:].mean()) < 0.8 * float(run.losses[0])


@pytest.mark.parametrize("kind", ["vector", "tokens"])
def test_no_step_reads_a_number_back(kind: Any) -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    counts = []
    for steps in (2, 20):
        encoder, decoder = (nn.Embedding(10, 4), nn.Linear(4, 10)) if kind == "tokens" else (_linear(8), nn.Identity())
        optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
        ids: dict[str, Any] = {"mask_id": MASK, "keep_ids": [PAD]} if kind == "tokens" else {}
        with Reads() as reads:
            data = _text() if kind == "tokens" else torch.ones(9, 8)
            train_masked(encoder, decoder, data, rate=0.5, steps=steps, kind=kind, optimizer=optimizer, **ids)
        counts.append(reads.count)
    assert counts[0] == counts[1]


X = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X, {"rate": 1.0}, r"rate must be in \[0, 1\)"),
        (X, {"rate": lambda share: 1 + share}, r"rate must be in \[0, 1\)"),
        (X, {"rate": 0.0}, "rate is 0 at step 0: nothing is hidden"),
        (X, {"kind": "pixels"}, "kind is 'pixels': choose one of vector, patches, tokens"),
        (X, {"law": "some"}, "law is 'some'"),
        (X, {"loss": "none"}, "loss is 'none'"),
        (X, {"steps": 0}, "steps must be at least 1"),
        (X, {"batch_size": 0}, "batch_size must be at least 1"),
        (X, {"mask_id": 3}, "kind='vector' with mask_id=3"),
        (X, {"keep_ids": [1]}, "keep_ids are ids of tokens, and kind is 'vector'"),
        (X, {"kind": "patches"}, r"floats \(N, P, d\), got torch.float32 \(4, 6\)"),
        (X.long(), {}, r"floats \(N, T\)"),
        (X.long(), {"kind": "tokens"}, "tokens need the id"),
        (X.long(), {"kind": "tokens", "mask_id": 9, "keep_ids": [1]}, "4 of 4 samples have no item"),
        ([X.long()], {"kind": "tokens", "mask_id": 9, "keep_ids": [1]}, "4 of 4 samples have no item"),
        (X[:0], {}, "0 of 0 samples"),
        (X[:, :0], {}, "no item that may be hidden"),
        (X[:, :5], {"decoder": nn.Linear(5, 6)}, r"decoder gave .* where the data are"),
        (X[..., None], {"kind": "patches", "law": "bernoulli"}, "for patches take law='exact'"),
        ([], {}, "data gave no batch"),
        (iter([X]), {"steps": 3}, "an iterator that was read once stays empty"),
    ],
)
def test_what_cannot_be_trained_is_named(data: Any, options: dict[str, Any], message: str) -> None:
    decoder = options.pop("decoder", nn.Linear(6, 6))
    with pytest.raises(ValueError, match=message):
        train_masked(nn.Identity(), decoder, data, **{"rate": 0.5, "steps": 1, **options})
    with pytest.raises(ValueError, match="nothing to train"):
        train_masked(nn.Identity(), nn.Identity(), X, rate=0.5, steps=1)


def test_a_batch_that_is_a_dict_is_named() -> None:
    with pytest.raises(TypeError, match=r"a batch of dict.*input_ids"):
        train_masked(nn.Linear(6, 6), nn.Identity(), [{"input_ids": X}], rate=0.5, steps=1)


def test_an_encoder_that_adds_a_class_token_is_named() -> None:
    class WithClass(PatchEncoder):
        def forward(self, visible: Tensor, positions: Tensor) -> Tensor:
            latent = super().forward(visible, positions)
            return torch.cat([latent[:, :1], latent], dim=1)

    with pytest.raises(ValueError, match=r"encoder gave \(2, 4, 8\) for 3 visible patches of 2 samples"):
        train_masked(WithClass(), PatchDecoder(), [torch.ones(2, 6, 4)], rate=0.5, steps=1, kind="patches")


def test_a_state_without_the_scheduler_is_named() -> None:
    encoder = _linear(6)
    run = train_masked(encoder, nn.Identity(), X, rate=0.5, steps=2, stop=1)
    optimizer = torch.optim.AdamW(encoder.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="state has no scheduler"):
        train_masked(
            encoder, nn.Identity(), X, rate=0.5, steps=2, state=run.state, optimizer=optimizer, scheduler=scheduler
        )


def test_data_that_are_not_finite_are_refused_before_any_step() -> None:
    encoder = nn.Linear(3, 3)
    before = encoder.weight.clone()
    for data in (torch.tensor([[1.0, float("nan"), 0.0]]), [torch.tensor([[1.0, float("inf"), 0.0]])]):
        with pytest.raises(ValueError, match="1 entries that are NaN or infinite"):
            train_masked(encoder, nn.Identity(), data, rate=0.5, steps=3)
    assert torch.equal(encoder.weight, before)
