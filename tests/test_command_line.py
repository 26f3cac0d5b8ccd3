"""Every mistake ends with one clear line, a status that is not zero, no traceback, and nothing lost."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MEDSYN = str(Path(sys.executable).with_name("medsyn"))
PAPER = "bloodmnist_ddpm"


def medsyn(*words, cwd=None, **environment):
    return subprocess.run([MEDSYN, *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
                          env={**os.environ, **environment})


def one_line(done, *fragments, status=(1, 2)):
    """The refusal's one line, which must hold all `fragments`."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode in status, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and lines[0].startswith("medsyn: "), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [f for f in fragments if f not in lines[0]] == [], lines[0]


@pytest.mark.parametrize(("words", "fragments"), [
    (["rnu", PAPER], ["rnu", "did you mean 'run'"]),
    (["data", "chek"], ["chek", "did you mean 'check'"]),
    (["run", "bloodmnist_dpm"], ["bloodmnist_dpm", f"did you mean '{PAPER}'"]),
    (["run", PAPER, "--scal", "smoke"], ["--scal", "--scale"]),
    (["run", PAPER, "--set", "resampels=3"], ["resampels", "did you mean 'resamples'"]),
    (["run", PAPER, "--set", "resamples=many"], ["resamples", "many", "a whole number"]),
    (["run", PAPER, "--set", "samples"], ["samples", "name=value"]),
    (["run", PAPER, "--minutes", "ten"], ["ten", "--minutes"]),
    (["run", PAPER, "--seeds", "a,b"], ["a,b", "0,1,2"]),
    (["run", PAPER, "--scale", "lapto"], ["lapto", "did you mean 'laptop'"]),
    (["run", PAPER, "--device", "gpu"], ["gpu", "expected one of auto, cpu, cuda, mps"]),
    (["run", PAPER, "--data", "bloodmnst"], ["bloodmnst", "did you mean 'bloodmnist'"]),
    (["run", PAPER, "--data", "cell=phantom"], ["cell", "did you mean 'cells'"]),
    (["data", "check", "bloodmnst"], ["bloodmnst", "did you mean 'bloodmnist'"]),
    (["sample", "nowhere"], ["nowhere", "medsyn run"]),
    (["report", "--out", "nowhere"], ["nowhere"]),
])
def test_mistyped(words, fragments, tmp_path):
    one_line(medsyn(*words, cwd=tmp_path), *fragments)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_says_what_where_and_under_which_licence(tmp_path):
    done = medsyn("run", PAPER, "--scale", "laptop", "--data", "bloodmnist", cwd=tmp_path, MEDSYN_DATA=str(tmp_path))
    one_line(done, "bloodmnist.npz", "medsyn data fetch bloodmnist", "CC BY 4.0", str(tmp_path))


def rebuilt(folder, **arrays):
    path = folder / "bloodmnist" / "bloodmnist_rebuilt_28.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_a_wrong_checksum_and_a_truncated_file(tmp_path):
    path = rebuilt(tmp_path, train_images=np.zeros((4, 28, 28, 3), np.uint8))
    one_line(medsyn("run", PAPER, "--data", "bloodmnist-rebuilt", cwd=tmp_path, MEDSYN_DATA=str(tmp_path)), path.name)
    one_line(medsyn("data", "check", "bloodmnist-rebuilt", cwd=tmp_path, MEDSYN_DATA=str(tmp_path)), "not as its manifest says")
    assert path.exists()


MANIFEST = """
schema: 1
name: own-cells
title: Cells of one's own
access: local
match: substitute
of: bloodmnist
licence: own
redistribute_images: false
derived_weights: own
citation: []
files: [{path: cells.npz}]
reader:
  kind: npz-splits
  size: 28
  splits:
    train: {images: train_images, labels: train_labels, count: 40}
    val: {images: val_images, labels: val_labels, count: 40}
    test: {images: test_images, labels: test_labels, count: 40}
labels: [basophil, eosinophil, erythroblast, immature granulocyte, lymphocyte, monocyte, neutrophil, platelet]
channels: [red, green, blue]
patients: none known
split: as saved
"""


def good():
    labels = np.arange(40, dtype=np.uint8)[:, None] % 8
    return {f"{split}_{kind}": array for split in ("train", "val", "test")
            for kind, array in (("images", np.zeros((40, 28, 28, 3), np.uint8)), ("labels", labels))}


def changed(name, value): return {**good(), name: value}


@pytest.mark.parametrize(("arrays", "fragments"), [
    (changed("train_images", np.array([{"a": 1}], dtype=object)), ["pickle"]),
    ({k: v for k, v in good().items() if k != "val_images"}, ["val_images"]),
    (changed("test_images", np.zeros((40, 28, 28), np.uint8)), ["test_images", "(40, 28, 28)"]),
    (changed("train_images", np.zeros((40, 28, 28, 3), np.float64)), ["train_images", "float64"]),
    (changed("val_labels", np.full((40, 1), 9, np.uint8)), ["val_labels", "9"]),
], ids=["pickle", "keys", "shape", "dtype", "label"])
def test_a_bad_npz(arrays, fragments, tmp_path):
    np.savez(tmp_path / "cells.npz", **arrays)
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    done = medsyn("run", PAPER, "--data", tmp_path, "--out", tmp_path / "runs")
    one_line(done, "cells.npz", *fragments)


def test_an_out_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    one_line(medsyn("run", PAPER, "--out", tmp_path / "file"), "cannot write", "--out")
    assert (tmp_path / "file").read_text() == "in the way"


def test_doctor_papers_and_data_answer(tmp_path):
    for words in (["doctor"], ["papers"], ["data", "list"], ["data", "check", "phantom-cells"], ["--help"], ["run", "--help"]):
        done = medsyn(*words, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.strip() and not done.stderr.strip(), (words, done.stderr)
    assert "claims" in medsyn("doctor").stdout and PAPER in medsyn("papers").stdout
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == "[]"
    shutil.rmtree(tmp_path)
