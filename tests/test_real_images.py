"""What needs real images: skipped, with the reason, where $MEDSYN_DATA does not hold them."""
import numpy as np
import pytest
import torch

from medsyn.datasets import Resize, open_images, to_model
from medsyn.diffusion import diffusion_loss
from medsyn.features import features_of
from medsyn.inception import FIDInception, InceptionExtractor, find_inception, inception_available, inception_extractor, read_weights
from medsyn.manifests import load_manifest, locate
from medsyn.papers import brain_tumor_cddpm as brain_tumor
from medsyn.papers import mask_ddpm
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


def test_inception_tells_kinds_of_real_cells_apart(cells):
    """Nearest neighbours in 64 features share their class more often than one time in eight."""
    if not inception_available(64): pytest.skip("no Inception weights here")
    test = cells.split("test").take(np.arange(0, 2_621, 41))
    features = features_of(inception_extractor(64), test)
    nearest = (np.linalg.norm(features[:, None] - features[None], axis=2) + 1e9*np.eye(len(test))).argmin(1)
    assert features.shape == (64, 64) and (test.labels[nearest] == test.labels).mean() > 0.3


def write_generated(path):
    """A file in the official layout, 566 tensors, with drawn numbers."""
    state, draw = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, torch.Generator().manual_seed(0)
    for name, tensor in FIDInception().state_dict().items():
        layer, kind = name.split(".conv.")
        if kind == "weight": state[name] = torch.randn(tensor.shape, generator=draw)*(2/tensor[0].numel())**0.5
        else:
            drawn = zip(("weight", "bias", "running_mean", "running_var"), torch.rand((4, len(tensor)), generator=draw) + 0.5, strict=True)
            state |= {f"{layer}.bn.{key}": value for key, value in drawn} | {f"{layer}.bn.num_batches_tracked": torch.tensor(0)}
    torch.save(state, path)
    return path


@pytest.mark.parametrize("weights", ["generated", "official"])
def test_inception_is_the_one_of_torch_fidelity(weights, tmp_path):
    """All four dimensions and the TensorFlow 1 resize, from 8-bit images to features."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error: pytest.skip(f"torch_fidelity cannot be imported here: {error}")
    if weights == "generated": path = write_generated(tmp_path / "generated.pth")
    elif not inception_available(2048): pytest.skip("the official Inception weights are not here")
    else: path = (found := find_inception(2048))[1] / found[0].files[0].path
    dims = [64, 192, 768, 2048]
    theirs = FeatureExtractorInceptionV3("theirs", [str(dim) for dim in dims], feature_extractor_weights_path=str(path))
    assert sum(p.numel() for p in theirs.parameters()) == 23_850_960
    network = FIDInception().requires_grad_(False).eval()
    network.load_state_dict(read_weights(path))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8))
    with torch.inference_mode(): expected = dict(zip(dims, theirs(images), strict=True))
    for dim in dims:
        found = InceptionExtractor(network, dim, "tf1", weights)(to_model(images, (0, 255)))
        assert (found - expected[dim]).norm() < 1e-5*expected[dim].norm(), dim


def opened(name, opener, *words):
    try: locate(load_manifest(name))
    except FileNotFoundError as error: pytest.skip(f"no real images here: {error}")
    return opener(name, *words)


def test_brain_slices_in_three_preparations():
    """Equally many slices of each kind in every split, whatever the preparation; cropped to the head, it fills more of the frame."""
    raw, released, meant = (opened("brain-tumor-4class", brain_tumor.open_slices, name) for name in ("raw", "released", "meant"))
    assert all(slices.images.shape == (1_000, 1, 32, 32) for slices in (raw, released, meant))
    assert [np.bincount(raw.labels[rows]).tolist() for rows in raw.splits.values()] == [[175]*4, [25]*4, [50]*4]
    head = [(np.asarray(slices.images) > 20).mean() for slices in (raw, meant)]
    assert head[1] > head[0]                                   # by little: most of these slices are cropped closely already
    assert (brain_tumor.two_classes(raw).labels == 0).sum() == 250


def test_lgg_patients_are_split_as_in_the_original():
    slices = opened("lgg-36", mask_ddpm.open_slices, 64)
    people = {name: len(np.unique(slices.patients[rows])) for name, rows in slices.splits.items()}
    assert people == {"train": 25, "val": 4, "test": 7} and "none of them in two splits" in slices.check_patients()
    marked = np.asarray(slices.masks).any((1, 2, 3))
    assert len(slices) == 732 and marked.sum() >= 440          # 444 before the masks were made smaller
    maps = mask_ddpm.maps_of(slices, "map")
    assert 0.2 < (maps[:, 0] > 0).mean() < 0.6 and (maps[:, 1] <= maps[:, 0]).all()
