"""A small training that tests kill, resume, share between processes and interrupt. Run: python killable.py FOLDER [SECONDS A STEP]"""
import sys
import time

import torch
from torch import nn

from medsyn.datasets import open_images
from medsyn.randomness import seeded
from medsyn.training import Recipe, constant, ema_half_life, fit


class Network(nn.Module):
    """Convolutions, normalisation by group and dropout: whatever could remember something between steps."""
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Dropout(0.2),
                                    nn.ConvTranspose2d(8, 3, 4, 2, 1))

    def forward(self, x): return self.layers(x)


class Denoise(Recipe):
    """Two networks with one optimiser each, of different kinds."""
    def __init__(self, pause, images=2048, dropout=True):
        with seeded(0, "initial weights"): networks = {"one": Network(), "two": Network()}
        if not dropout:
            for network in networks.values(): network.layers[3].p = 0.0
        optimisers = {"one": torch.optim.AdamW(networks["one"].parameters(), 1e-3),
                      "two": torch.optim.SGD(networks["two"].parameters(), 1e-2, momentum=0.9)}
        rates = {name: constant(1e-3) for name in optimisers}
        super().__init__(networks, optimisers, rates, 32, images, {"dropout": dropout}, {"one": ema_half_life(500)})
        self.pause = pause

    def step(self, batch, n_images, draw):
        time.sleep(self.pause)

        def loss_of(network):
            return lambda part, draw: (network(part.images + draw.normal("noise", 3, 28, 28)) - part.images).square().mean()
        return {name: self.minimise(name, loss_of(network), batch, draw) for name, network in self.modules.items()}


if __name__ == "__main__":
    folder, pause = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    dropout = "--no-dropout" not in sys.argv
    cells = open_images("phantom", ["phantom-cells"])
    fit(Denoise(pause, dropout=dropout), cells, folder, save_every_s=0.0, tick_images=96)
