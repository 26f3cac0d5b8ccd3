"""A user's own slices with lesions: a folder and a short manifest, then a run, then slices drawn to a mask."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn.heads import head_slices
from medsyn.results import read_results

MEDSYN = Path(sys.executable).with_name("medsyn")
MANIFEST = """\
schema: 1
name: my-lesions
title: Slices with lesions of my own
access: local
match: substitute
of: lgg-mri-segmentation
licence: mine
redistribute_images: false
files: [{path: mine/}]
reader: {kind: patient-folders, size: 32, splits: {train: rest, test: [P07]}}
channels: [FLAIR]
patients: one folder each
split: by patient
"""
TINY = ("images=64", "collection_images=64", "described_images=64", "described_more=64", "medsyn_images=64", "segmenter_images=320",
        "keras_images=64", "extractor_images=640", "utility_images=64", "samples=24", "evaluations=4",
        "medsyn_evaluations=4", "resamples=20")


def call(*words, cwd, ok=True):
    done = subprocess.run([MEDSYN, *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    assert (done.returncode == 0) is ok, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Eight phantom patients as grey PNG files with masks, in a folder each; the last one is held out. Run once."""
    folder = tmp_path_factory.mktemp("own")
    heads = head_slices(48, 32)
    for row in np.flatnonzero(np.isin(heads.labels, (0, 1, 3)) | (heads.patients == 7)):
        home = folder/"data"/"mine"/f"P{heads.patients[row]:02}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(heads.images[row, 3]).save(home/f"s{heads.slices[row]}.png")
        Image.fromarray(255*heads.masks[row, 0]).save(home/f"s{heads.slices[row]}_mask.png")
    (folder/"data"/"manifest.yaml").write_text(MANIFEST)
    settings = [word for setting in TINY for word in ("--set", setting)]
    said = call("run", "mask_ddpm", "--data", folder/"data", *settings, cwd=folder)
    return folder, next((folder/"runs"/"mask_ddpm").iterdir()), said


def test_the_manifest_is_short():
    assert len(MANIFEST.splitlines()) <= 15


def test_a_run_on_own_slices_is_whole(own):
    _, run, said = own
    results = read_results(run/"results.json")
    assert "unknown parameter" not in said and "figures and" in said
    assert {figure["id"] for figure in results["figures"]} >= {"obedience", "brush", "fid", "told"}
    assert all(score["data"]["name"] == "my-lesions" for score in results["scores"])


def test_slices_are_drawn_to_a_mask(own):
    folder, run, _ = own
    mask = next((folder/"data"/"mine"/"P07").glob("*_mask.png"))
    call("sample", run, "--mask", mask, "--n", 3, "--out", folder/"drawn", cwd=folder)
    pictures = sorted((folder/"drawn").glob("*.png"))
    assert len(pictures) == 3 and Image.open(pictures[0]).size == (16, 16)


def test_what_cannot_be_drawn_is_said_in_one_line(own):
    folder, run, _ = own
    slice_ = next((folder/"data"/"mine"/"P07").glob("s?.png"))
    assert "draws to a mask: give one with --mask FILE" in call("sample", run, cwd=folder, ok=False)
    assert "a mask holds 0 and 1, or 0 and 255" in call("sample", run, "--mask", slice_, cwd=folder, ok=False)
    assert "free takes no mask" in call("sample", run, "--mask", slice_, "--variant", "free", cwd=folder, ok=False)
