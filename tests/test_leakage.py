"""The leakage gate from outside: what `medsyn data check` prints, which runs it stops, and what a waiver changes."""
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import medsyn.duplicates as duplicates
from medsyn.datasets import ImageSet, open_images
from medsyn.duplicates import check_leakage, exact_pairs, find_duplicates, leakage_report, near_pairs
from medsyn.manifests import load_manifest, locate
from medsyn.phantoms import blood_cells
from medsyn.runner import notebook_of, open_run

MEDSYN = str(Path(sys.executable).with_name("medsyn"))
PAPER = "bloodmnist_ddpm"
COUNTS = {"train": 60, "val": 20, "test": 20}
WAIVERS = [{"kind": "exact", "splits": ["train", "test"], "pairs": 1, "reason": "planted"},
           {"kind": "near", "splits": ["val", "train"], "pairs": 2, "reason": "planted"}]


def medsyn(*words, cwd):
    return subprocess.run([MEDSYN, *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def own_set(folder, planted=True, **more):
    """A folder with 100 phantoms and a manifest: train 0 to 59, val 60 to 79, test 80 to 99; leaks are planted."""
    images, labels = blood_cells(100)
    if planted:
        images[85] = images[3]                                   # exact, train and test
        images[61], images[62] = jpeg(images[5]), images[6][:, ::-1]    # near, train and val
        images[50] = images[51]                                  # exact, within train
    arrays, start = {}, 0
    for split, count in COUNTS.items():
        arrays |= {f"{split}_images": images[start:start + count].transpose(0, 2, 3, 1), f"{split}_labels": labels[start:start + count]}
        start += count
    folder.mkdir(exist_ok=True)
    np.savez(folder / "cells.npz", **arrays)
    splits = {split: {"images": f"{split}_images", "labels": f"{split}_labels", "count": count} for split, count in COUNTS.items()}
    manifest = {"schema": 1, "name": "own-cells", "title": "Cells of one's own", "access": "local", "match": "substitute",
                "of": "bloodmnist", "licence": "own", "redistribute_images": False, "derived_weights": "own", "citation": [],
                "files": [{"path": "cells.npz"}], "reader": {"kind": "npz-splits", "size": 28, "splits": splits},
                "labels": list("abcdefgh"), "channels": ["red", "green", "blue"], "patients": "none known", "split": "as saved"}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest | more, sort_keys=False))
    return folder


def check(folder): return medsyn("data", "check", folder / "manifest.yaml", "--root", folder, cwd=folder)


def one_line(done, *fragments):
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("medsyn: "), (done.returncode, done.stdout, done.stderr)
    assert [f for f in fragments if f not in lines[0]] == [], lines[0]


def test_data_check_lists_every_pair_and_fails(tmp_path):
    done = check(own_set(tmp_path / "own"))
    one_line(done, "1 exact pair in train and test, 2 near pairs in train and val", "first: row 3 of train and row 85 of test",
             "pairs: 1, reason:")
    listed = [line.split()[:5] for line in done.stdout.splitlines() if line.startswith(("exact", "near"))]
    assert listed[0] == ["exact", "train", "3", "test", "85"] and listed[3] == ["exact", "train", "50", "train", "51"]
    assert sorted(listed[1:3]) == [["near", "train", "5", "val", "61"], ["near", "train", "6", "val", "62"]] and len(listed) == 4
    assert "2 exact pairs, 1 of them across splits (train/test 1); 2 near pairs" in done.stdout


def test_what_is_waived_passes_and_is_said(tmp_path):
    done = check(own_set(tmp_path / "own", duplicates=WAIVERS))
    assert done.returncode == 0 and not done.stderr and "waived: 1 exact in train and test: planted" in done.stdout


@pytest.mark.parametrize(("waivers", "fragments"), [
    (WAIVERS[:1], ["2 near pairs in train and val;"]),
    ([WAIVERS[0], WAIVERS[1] | {"pairs": 1}], ["2 near pairs in train and val (1 waived)"]),
    ([WAIVERS[0] | {"splits": ["train", "tset"]}], ["'tset'", "did you mean 'test'?"]),
    ([WAIVERS[0] | {"kind": "exakt"}], ["'exakt'", "did you mean 'exact'?"]),
    ([{"kind": "exact", "splits": ["train", "test"], "pairs": 1}], ["the key 'reason' is missing"]),
    (["exact"], ["expected a mapping of waiver keys, found 'exact'"]),
    ({"exact": 1}, ["duplicates must be of type list"]),
], ids=["one of two", "too few", "split", "kind", "reason", "text", "mapping"])
def test_a_waiver_that_does_not_fit_is_refused(waivers, fragments, tmp_path):
    one_line(check(own_set(tmp_path / "own", duplicates=waivers)), *fragments)


def test_a_leaking_run_is_refused_before_it_starts(tmp_path):
    folder = own_set(tmp_path / "own")
    one_line(medsyn("run", PAPER, "--data", folder, "--out", tmp_path / "runs", cwd=tmp_path), "own-cells: its splits leak: 1 exact pair")
    assert not (tmp_path / "runs").exists()


def test_plain_papermill_is_refused_too(tmp_path):
    folder = own_set(tmp_path / "own")
    words = [sys.executable, "-m", "papermill", str(notebook_of(PAPER)), str(tmp_path / "out.ipynb"), "-p", "data", str(folder)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "its splits leak: 1 exact pair in train and test" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [{"planted": False}, {"duplicates": WAIVERS}], ids=["clean", "waived"])
def test_a_clean_or_waived_set_may_run(more, tmp_path):
    run, _ = open_run(PAPER, data=str(own_set(tmp_path / "own", **more)), out=tmp_path / "runs", device="cpu")
    assert json.loads((run.folder / "provenance.json").read_text())["complete"] is False


def test_a_set_is_searched_once(tmp_path, monkeypatch):
    images = ImageSet(blood_cells(20)[0], {"train": range(10), "test": range(10, 20)})
    first = leakage_report(images, tmp_path)
    monkeypatch.setattr(duplicates, "find_duplicates", lambda s: pytest.fail("searched again"))
    assert leakage_report(images, tmp_path) == first
    with pytest.raises(pytest.fail.Exception): leakage_report(images.with_splits({"train": range(20)}), tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (3, 1, 8, 8), (4, 2, 16, 40)])
def test_odd_shapes(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert find_duplicates(ImageSet(images)).pairs == ()


def test_blank_images_are_no_duplicates():
    report = find_duplicates(ImageSet(np.zeros((40, 1, 28, 28), np.uint8), {"train": range(20), "test": range(20, 40)}))
    assert report.pairs == () and report.blank == 40 and "40 blank images left out" in report.summary


def test_floating_point_images():
    draw = np.random.default_rng(0)
    images = draw.random((6, 1, 24, 24)).astype(np.float32)
    images[4] = images[1] + draw.normal(0, 0.005, images[1].shape)
    report = find_duplicates(ImageSet(images, value_range=(-1, 2)))
    assert [(pair.a, pair.b, pair.kind) for pair in report.pairs] == [(1, 4, "near")]


def test_larger_images_are_judged_by_their_detail():
    """Two pictures that agree at 32 pixels and differ in fine texture are no pair; a JPEG copy is one."""
    texture = np.random.default_rng(0).normal(0, 20, (40, 1, 96, 96))
    images = np.clip(blood_cells(20, 96)[0].repeat(2, 0) + texture, 0, 255).astype(np.uint8)
    small = near_pairs(duplicates.thumbnails(images)[:, None])[0]
    assert {(2*k, 2*k + 1) for k in range(20)} & set(map(tuple, small.T.tolist())) and near_pairs(images)[0].shape[1] == 0
    plain = blood_cells(20, 96)[0]
    found = near_pairs(np.concatenate([plain, np.stack([jpeg(image) for image in plain])]))[0]
    assert sorted(found.T.tolist()) == [[k, k + 20] for k in range(20)]


@pytest.fixture(scope="module")
def cells():
    if not os.environ.get("MEDSYN_DATA"): pytest.skip("MEDSYN_DATA is not set: no real blood cells here")
    try: locate(load_manifest("bloodmnist-rebuilt"))
    except FileNotFoundError as error: pytest.skip(f"no real blood cells here: {error}")
    return open_images("bloodmnist-rebuilt", ["bloodmnist-rebuilt"])


def test_the_repeats_of_the_rebuilt_cells(cells):
    """The exact ones against a search of another kind; the near ones against plain correlation at the best whole-pixel shift."""
    report = check_leakage(cells, load_manifest("bloodmnist-rebuilt"))
    assert Counter((pair.kind, pair.across) for pair in report.pairs) == {
        ("exact", True): 8, ("exact", False): 8, ("near", True): 5, ("near", False): 1}
    pixels = np.asarray(cells.images).reshape(len(cells), -1)
    order = np.lexsort(pixels.T[::-1])
    equal = np.flatnonzero((pixels[order[1:]] == pixels[order[:-1]]).all(1))
    assert sorted(sorted((int(order[k]), int(order[k + 1]))) for k in equal) == sorted(exact_pairs(cells.images).T.tolist())
    grey = np.asarray(cells.images).mean(1)
    for pair in report.pairs:
        shifts = [np.roll(grey[pair.b], (dy, dx), (0, 1))[2:-2, 2:-2] for dy in range(-2, 3) for dx in range(-2, 3)]
        assert max(np.corrcoef(grey[pair.a][2:-2, 2:-2].ravel(), shifted.ravel())[0, 1] for shifted in shifts) > 0.95, pair


def test_the_rebuilt_cells_do_not_pass_without_their_waivers(cells):
    with pytest.raises(ValueError, match="3 exact pairs in train and val, 4 exact pairs in train and test"):
        check_leakage(cells, replace(load_manifest("bloodmnist-rebuilt"), duplicates=[]))
