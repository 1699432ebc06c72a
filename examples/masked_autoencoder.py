"""Masked self-supervised learning on images in patches: the encoder sees a quarter, the decoder gives back the rest.

python examples/masked_autoencoder.py
"""

import torch
from torch import Tensor, nn

from eckart.regularizers import cosine_rate, images_to_patches, representation_spectrum, train_masked

PATCHES, NUMBERS, WIDTH = 16, 4, 32  # an 8×8 image in patches of 2×2, and what the encoder makes of each patch


class Encoder(nn.Module):
    """Any module that takes a set of patches with their positions and gives a latent for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(NUMBERS, WIDTH), nn.Embedding(PATCHES, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)

    def forward(self, visible: Tensor, positions: Tensor) -> Tensor:
        return self.block(self.embed(visible) + self.place(positions))


class Decoder(nn.Module):
    """Takes the latents in their places, puts a mask token where they are hidden, and gives back all patches."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.randn(PATCHES, WIDTH) / 10)
        self.block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(WIDTH, NUMBERS)

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        return self.out(self.block(torch.where(hidden.unsqueeze(-1), self.token, latent) + self.place))


def images(count: int) -> Tensor:
    """Smooth waves of random direction, so that a part of an image tells the rest."""
    axis = torch.arange(8.0)
    turn, phase, speed = torch.rand(3, count, 1, 1)
    along = turn.mul(6.3).cos() * axis[:, None] + turn.mul(6.3).sin() * axis
    return torch.sin(along * (0.3 + 0.5 * speed) + 6.3 * phase)[:, None]


torch.manual_seed(0)
data = images_to_patches(images(2000), patch=2)
whole = (data[:500], torch.arange(PATCHES).expand(500, PATCHES))  # what the encoder is given when nothing is hidden
print("mask ratio    first loss  last loss    effective rank of the representation, of 32")
for name, rate in (("0.25", 0.25), ("0.75", 0.75), ("0.25 → 0.75", cosine_rate(0.25, 0.75))):
    encoder, decoder = Encoder(), Decoder()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    run = train_masked(encoder, decoder, data, rate=rate, steps=150, kind="patches", optimizer=optimizer)
    rank = representation_spectrum(encoder, [whole]).effective_rank
    print(f"{name:12}  {run.losses[:5].mean():10.3f}  {run.losses[-20:].mean():9.3f}    {rank:.1f}")
