"""A cascade's stages live by themselves: one is killed and goes on, the others do not notice; one of another size is refused by name."""
import signal
import subprocess
import sys
import time

import pytest
import torch

from medsyn.papers.srddpm import SCALES, VARIANTS, load_generator, open_slices, train_variant
from medsyn.runner import scale_settings
from medsyn.runs import file_digest
from medsyn.training import checkpoints, load_checkpoint

TRAIN = """
import sys, time
from medsyn.cascades import fit_stage
from medsyn.papers.srddpm import SCALES, VARIANTS, open_slices
from medsyn.runner import scale_settings
folder, pause = sys.argv[1], float(sys.argv[2])
settings, variant = scale_settings(SCALES, "smoke", {"images": 256}), VARIANTS["scrambled-cascade"]
for stage in variant.stages(settings, 0):
    recipe = variant.recipe(stage, settings, 0)
    def slowly(*words, step=recipe.step):
        time.sleep(pause*bool(stage.factor))
        return step(*words)
    recipe.step = slowly
    fit_stage(stage, recipe, open_slices("phantom", stage.side), folder, save_every_s=0.0, tick_images=16)
"""
SMALL, LARGE = "scrambled-cascade-16-seed0", "scrambled-cascade-32-seed0"


def train(folder, pause=0.0):
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder), str(pause)], stdin=subprocess.DEVNULL)


def kept(folder):
    """Digest of what a stage trained, by file."""
    return {path.name: file_digest(path) for path in [*checkpoints(folder / "checkpoints"), folder / "metrics.csv"]}


def weights(folder):
    return load_checkpoint(folder / "checkpoints")[0]


def test_a_killed_stage_goes_on_and_leaves_the_others_alone(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert train(undisturbed).wait(600) == 0
    process, end = train(disturbed, pause=0.5), time.monotonic() + 600
    while not checkpoints(disturbed / LARGE / "checkpoints") and time.monotonic() < end: time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    before, stopped = kept(disturbed / SMALL), load_checkpoint(disturbed / LARGE / "checkpoints")[1]["n_images"]
    assert 0 < stopped < 256 and len(before) >= 2
    assert train(disturbed).wait(600) == 0
    assert kept(disturbed / SMALL) == before
    for stage in (SMALL, LARGE):
        one, two = weights(undisturbed / stage), weights(disturbed / stage)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), stage


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with one cascade without a block, 16 to 32 pixels."""
    folder = tmp_path_factory.mktemp("run")
    sets = {side: open_slices("phantom", side) for side in (16, 32)}
    train_variant(VARIANTS["none-cascade"], settings_with(), sets, folder / "training")
    return folder, sets


def settings_with(**changes):
    return scale_settings(SCALES, "smoke", {"images": 32, "evaluations": 2, **changes})


def test_a_stage_for_another_resolution_is_refused_by_name(run_folder):
    folder, sets = run_folder
    other, variant = settings_with(sides=(8, 32)), VARIANTS["none-cascade"]
    before = kept(folder / "training" / "none-cascade-32-seed0")
    with pytest.raises(ValueError, match=r"stage 'none-cascade-32-seed0' \(factor: was 2, now 4\)"):
        train_variant(variant, other, {8: open_slices("phantom", 8), 32: sets[32]}, folder / "training")
    with pytest.raises(ValueError, match=r"stage 'none-cascade-32-seed0' \(factor: was 2, now 4\)"):
        load_generator(folder, other, "none-cascade")
    with pytest.raises(ValueError, match=r"stage 'none-cascade-16-seed0' makes images of 16 x 16, but those of .* have 32 x 32"):
        train_variant(variant, settings_with(), {16: sets[32], 32: sets[32]}, folder / "training")
    assert kept(folder / "training" / "none-cascade-32-seed0") == before


def test_what_stands_is_loaded_whatever_was_refused(run_folder):
    folder, _ = run_folder
    assert load_generator(folder, settings_with(), "none-cascade").generate(range(2)).images.shape == (2, 1, 32, 32)
    with pytest.raises(FileNotFoundError, match="train first"): load_generator(folder, settings_with(), "medsyn")
