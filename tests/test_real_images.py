"""What needs real images: skipped, with the reason, where $MEDSYN_DATA does not hold them."""
import numpy as np
import pytest

from medsyn.datasets import Resize, open_images
from medsyn.diffusion import diffusion_loss
from medsyn.manifests import load_manifest, locate
from medsyn.papers.bloodmnist_ddpm import DATA, SCALES, VARIANTS
from medsyn.randomness import Draw
from medsyn.runner import scale_settings


@pytest.fixture(scope="module")
def cells():
    try: locate(load_manifest("bloodmnist-rebuilt"))
    except FileNotFoundError as error: pytest.skip(f"no real blood cells here: {error}")
    return open_images("bloodmnist-rebuilt", DATA["cells"])


def test_the_rebuilt_cells_are_what_their_manifest_says(cells):
    assert {name: len(rows) for name, rows in cells.splits.items()} == {"train": 11_959, "val": 1_712, "test": 2_621}
    assert cells.images.shape[1:] == (3, 28, 28) and cells.images.dtype == np.uint8 and cells.match == "substitute"
    mean = np.asarray(cells.split("train").images).mean((0, 2, 3))/255
    assert np.abs(mean - (0.7943, 0.6597, 0.6962)).max() < 0.01  # quoted for the official training set
    assert cells.split("train").labels.min() == 0 and cells.split("train").labels.max() == 7


def test_enlarging_is_cached_and_mapped(cells):
    one, two = (open_images("bloodmnist-rebuilt", DATA["cells"], (Resize(32),)) for _ in range(2))
    assert one.digest == two.digest != cells.digest and isinstance(two.images, np.memmap) and two.size == (32, 32)


def test_release_a_keeps_half_of_the_cells(cells):
    pool = VARIANTS["release-a"].images("bloodmnist-rebuilt", scale_settings(SCALES, "paper")).splits["train"]
    assert len(pool) == 11_800 and len(np.unique(pool)) == 5_919


def test_an_untrained_network_knows_nothing_of_real_cells(cells):
    """The whole chain once: an L1 noise error near 0.8, that of the answer zero."""
    settings = scale_settings(SCALES, "smoke")
    recipe = VARIANTS["release-a"].recipe(settings, 0)
    images = VARIANTS["release-a"].images("bloodmnist-rebuilt", settings).split("train").tensor(range(64))
    loss = diffusion_loss(recipe.denoiser, images, Draw(0).rows(range(64)), distance="l1")
    assert 0.6 < loss.item() < 1.6
