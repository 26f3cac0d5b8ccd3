"""A user's own volumes: a folder of NIfTI cases and a short manifest, then a run, then the contrast that a case lacks."""
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsyn.heads import CONTRASTS, head_slices
from medsyn.papers.mudiff import _slices_for, open_contrasts
from medsyn.results import read_results
from medsyn.volumes import read_volume

MEDSYN = Path(sys.executable).with_name("medsyn")
MANIFEST = """\
schema: 1
name: my-cases
title: Volumes of my own in four contrasts
access: local
match: substitute
of: brats2019
licence: mine
redistribute_images: false
files: [{path: mine/}]
reader: {kind: case-folders, size: 256, slices: 6, mask: seg, splits: {train: rest, test: [case-6, case-7]}}
channels: [T1, T1ce, T2, FLAIR]
patients: one folder each
split: by patient
"""
TINY = ("images=8", "ablations=false", "medsyn_images=64", "rival_images=64", "segmenter_images=64", "resamples=20", "test_slices=12")
AFFINE = np.array([[0, -1.2, 0, 10], [1.0, 0, 0, -20], [0, 0, 3.0, -5], [0, 0, 0, 1]])


def call(*words, cwd, ok=True):
    done = subprocess.run([MEDSYN, *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    assert (done.returncode == 0) is ok, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def write_case(folder, pictures, mask=None, without=()):
    folder.mkdir(parents=True)
    for name, slices in zip(CONTRASTS, pictures.swapaxes(0, 1), strict=True):
        if name not in without: nibabel.save(nibabel.Nifti1Image(np.float32(slices.transpose(2, 1, 0)), AFFINE), folder/f"x_{name}.nii.gz")
    if mask is not None: nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0), AFFINE), folder/"x_seg.nii.gz")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Eight phantom patients as folders of NIfTI files, the last two held out; and a case that lacks T2. Run once."""
    folder = tmp_path_factory.mktemp("own")
    heads = head_slices(54, 32, seed=11)
    images = np.where(heads.images > 24, heads.images, 0)                    # skull-stripped volumes have a background of 0
    for patient in range(8):
        rows = heads.patients == patient
        write_case(folder/"data"/"mine"/f"case-{patient}", images[rows], heads.masks[rows, 0])
    write_case(folder/"new", images[heads.patients == 8], without=("T2",))
    (folder/"data"/"manifest.yaml").write_text(MANIFEST)
    settings = [word for setting in TINY for word in ("--set", setting)]
    said = call("run", "mudiff", "--data", folder/"data", *settings, cwd=folder)
    return folder, next((folder/"runs"/"mudiff").iterdir()), said


def test_the_manifest_is_short():
    assert len(MANIFEST.splitlines()) <= 15


def test_a_case_is_sized_as_training_sized_it(own, monkeypatch):
    folder, _, _ = own
    monkeypatch.setenv("MEDSYN_CACHE", str(folder/"cache"))
    images = open_contrasts(folder/"data", 16)
    volumes = {name: read_volume(folder/"data"/"mine"/"case-6"/f"x_{name}.nii.gz") for name in ("FLAIR", "T1")}
    seen = _slices_for(volumes, list(images.channels), 16)
    trained = 2*np.asarray(images.images)[images.patients == "case-6"] - 1
    for k, name in enumerate(images.channels):
        assert np.abs(seen[:, k].numpy() - (trained[:, k] if name in volumes else 0)).max() < 1e-6


def test_a_run_on_own_volumes_is_whole(own):
    _, run, said = own
    results = read_results(run/"results.json")
    assert "figures and" in said
    assert {figure["id"] for figure in results["figures"]} >= {"given", "qualitative", "honest", "every-contrast", "doubt"}
    assert all(score["data"]["name"] == "my-cases" for score in results["scores"])


def test_the_missing_contrast_is_written_where_the_others_lie(own):
    folder, run, _ = own
    said = call("sample", run, "--image", folder/"new", "--out", folder/"drawn", cwd=folder)
    assert "T2.nii.gz" in said
    made, given = nibabel.load(folder/"drawn"/"T2.nii.gz"), nibabel.load(folder/"new"/"x_T1.nii.gz")
    assert np.array_equal(made.affine, given.affine) and made.shape == given.shape and made.get_data_dtype() == np.float32
    values = made.get_fdata()
    behind = np.all([nibabel.load(path).get_fdata() == 0 for path in (folder/"new").iterdir()], axis=0)
    assert 0 <= values.min() and values.max() <= 1 and values.std() > 0.05 and behind.mean() > 0.2 and not values[behind].any()
    doubt = nibabel.load(folder/"drawn"/"T2_doubt.nii.gz").get_fdata()
    assert doubt.shape == made.shape and (doubt >= 0).all() and doubt.any()


def test_what_cannot_be_drawn_is_said_in_one_line(own):
    folder, run, _ = own
    assert "give its folder with --image" in call("sample", run, cwd=folder, ok=False)
    assert "all contrasts are there" in call("sample", run, "--image", folder/"data"/"mine"/"case-0", cwd=folder, ok=False)
    assert "coded draws T1ce only" in call("sample", run, "--image", folder/"new", "--variant", "coded", cwd=folder, ok=False)
    write_case(folder/"two", np.ones((6, 4, 32, 32))*np.arange(32), without=("T1", "T2"))
    assert "T1 and T2 are missing" in call("sample", run, "--image", folder/"two", cwd=folder, ok=False)
