"""Knee exams in the layout of MRNet: what is taken, how often, and what is refused. They are made here; real ones may not be passed on."""
import pickle
from dataclasses import replace

import numpy as np
import pytest

from medsyn.datasets import Resize, open_images, prepare
from medsyn.duplicates import leakage_report
from medsyn.manifests import load_manifest, locate
from medsyn.mrnet import LABELS, StretchSlices, as_original, middle_slices, one_channel, repeat_table

ANSWERS = {"normal": (0, 0, 0), "other": (1, 0, 0), "acl": (1, 1, 0), "meniscus": (1, 0, 1), "acl+meniscus": (1, 1, 1)}
DEPTHS = {"0000": 17, "0001": 36, "0002": 25, "0003": 5, "0004": 6, "0005": 20, "0006": 22, "1130": 25, "1131": 22, "1132": 61}
KINDS = dict(zip(DEPTHS, [*LABELS, "acl+meniscus", "other", "normal", "acl", "acl+meniscus"], strict=True))
OFFICIAL = load_manifest("mrnet")


def part_of(exam):
    return "train" if exam < "1130" else "valid"


def volume(exam):
    """Every slice says its number in each of its pixels but the first, which says the exam."""
    slices = np.repeat(np.arange(DEPTHS[exam], dtype=np.uint8), 256*256).reshape(-1, 256, 256)
    slices[:, 0, 0] = int(exam) % 200
    return slices


class Exams:
    """A folder of exams in which one thing at a time may be wrong."""

    def __init__(self, folder):
        self.folder = folder
        for exam in DEPTHS: self.save(exam, volume(exam))
        self.tables({exam: ANSWERS[kind] for exam, kind in KINDS.items()})

    def path(self, exam): return self.folder/part_of(exam)/"coronal"/f"{exam}.npy"
    def table(self, part, task): return self.folder/f"{part}-{task}.csv"

    def save(self, exam, array):
        self.path(exam).parent.mkdir(parents=True, exist_ok=True)
        np.save(self.path(exam), array, allow_pickle=True)

    def tables(self, answers):
        for part in ("train", "valid"):
            for column, task in enumerate(("abnormal", "acl", "meniscus")):
                lines = [f"{exam},{row[column]}\n" for exam, row in answers.items() if part_of(exam) == part]
                self.table(part, task).write_text("".join(lines))

    def add(self, part, line):
        for task in ("abnormal", "acl", "meniscus"):
            with open(self.table(part, task), "a") as table: table.write(line)

    def prepare(self, steps=(), **counts):
        return prepare(replace(OFFICIAL, reader=OFFICIAL.reader | {"counts": counts}), steps, root=self.folder, cache=self.folder/"cache")

    def refusal(self):
        with pytest.raises(ValueError) as caught: self.prepare()
        message = str(caught.value)
        assert "\n" not in message and not list((self.folder/"cache").glob("*")), "one line, and nothing half done"
        return message


@pytest.fixture
def exams(tmp_path):
    return Exams(tmp_path)


# --- what is taken ---------------------------------------------------------------------------------------------------

def test_five_middle_slices_of_every_exam(exams):
    images = exams.prepare()
    assert images.images.shape == (50, 1, 256, 256) and images.images.dtype == np.uint8 and images.match == "official"
    assert images.images[::5, 0, 0, 0].tolist() == [int(exam) % 200 for exam in DEPTHS]
    numbers = images.images[:, 0, 9, 9].reshape(10, 5).tolist()
    assert numbers == [list(range(depth//2 - 2, depth//2 + 3)) for depth in DEPTHS.values()]
    assert numbers[:4] == [[6, 7, 8, 9, 10], [16, 17, 18, 19, 20], [10, 11, 12, 13, 14], [0, 1, 2, 3, 4]]
    assert images.slices.reshape(10, 5).tolist() == numbers


def test_labels_patients_and_splits(exams):
    images = exams.prepare()
    assert [LABELS[label] for label in images.labels[::5]] == list(KINDS.values()) and images.label_names == LABELS
    assert images.patients[::5].tolist() == list(DEPTHS) and images.cases[0] == "train/0000" and images.cases[-1] == "valid/1132"
    assert {name: len(rows) for name, rows in images.splits.items()} == {"train": 35, "test": 15}
    assert images.check_patients() == "mrnet: 10 patients, none of them in two splits"
    assert not images.redistribute_images


def test_short_exams_give_each_slice_they_have_once(exams):
    assert [list(middle_slices(depth)) for depth in (1, 2, 3, 4, 5)] == [list(range(depth)) for depth in (1, 2, 3, 4, 5)]
    exams.save("0001", volume("0001")[:1])
    exams.save("1131", volume("1131")[:4])
    images = exams.prepare()
    assert images.slices[images.patients == "0001"].tolist() == [0]
    assert images.slices[images.patients == "1131"].tolist() == [0, 1, 2, 3] and len(images) == 45


def test_positives_come_again_in_every_task(exams):
    original = as_original(exams.prepare())
    taken = {name: original.patients[rows].reshape(-1, 5)[:, 0].tolist() for name, rows in original.splits.items()}
    assert taken["train"] == ["0002", "0004", "0005", "0001", "0002", "0003", "0004", "0005", "0006", "0003", "0004", "0005"]
    assert taken["valid"] == ["1131", "1132"]*2 + ["1132"]
    assert repeat_table(original.splits["train"], original.patients) == [(1, 2, 10), (2, 2, 10), (3, 2, 10)]
    assert "0000" not in taken["train"] and "1130" not in taken["valid"], "exams without a finding are never taken"


def test_preparation_and_sizes(exams):
    small = exams.prepare([StretchSlices(), Resize(64)])
    assert small.images.shape == (50, 1, 64, 64) and set(small.labels.tolist()) == set(range(5))


def test_what_is_hidden_is_passed_over_and_what_changes_is_read_anew(exams):
    exams.path("0000").with_name("._0000.npy").write_bytes(b"left by another system")
    first = exams.prepare()
    exams.save("0000", volume("0000") + np.uint8(1))
    assert exams.prepare().digest != first.digest


def test_the_tables_must_be_the_official_ones():
    counts = OFFICIAL.reader["counts"]
    assert OFFICIAL.access == "registered" and OFFICIAL.match == "official" and not OFFICIAL.redistribute_images
    assert counts == {"train": {"exams": 1130, "abnormal": 913, "acl": 208, "meniscus": 397},
                      "valid": {"exams": 120, "abnormal": 95, "acl": 54, "meniscus": 52}}


# --- what is refused -------------------------------------------------------------------------------------------------

def test_other_counts_than_stated(exams):
    with pytest.raises(ValueError, match="the tables of train name 7 exams, expected 1130"): prepare(OFFICIAL, root=exams.folder)
    with pytest.raises(ValueError, match="the tables of valid name 2 acl, expected 54"): exams.prepare(valid={"acl": 54})
    with pytest.raises(ValueError, match=r"unknown count 'alc'.*'acl'"): exams.prepare(train={"alc": 2})


def test_a_missing_volume(exams):
    exams.path("1131").unlink()
    assert "1 exams of valid-acl.csv have no volume, first 1131.npy: get them anew" in exams.refusal()


def test_a_row_without_a_file(exams):
    exams.add("train", "0999,0\n")
    assert "1 exams of train-acl.csv have no volume, first 0999.npy" in exams.refusal()


def test_a_file_without_a_row(exams):
    np.save(exams.path("0000").with_name("0777.npy"), volume("0000"))
    assert "1 files have no row in train-acl.csv, first 0777.npy: move them away" in exams.refusal()


def test_an_exam_on_both_sides(exams):
    exams.add("valid", "0000,0\n")
    np.save(exams.path("1130").with_name("0000.npy"), volume("0000"))
    assert "the exam 0000 is in the tables of train and of valid" in exams.refusal()


def test_an_exam_twice_in_a_table(exams):
    exams.add("train", "0003,1\n")
    assert "line 8: the exam 0003 stands there twice" in exams.refusal()


@pytest.mark.parametrize("task", ["abnormal", "acl", "meniscus"])
def test_tables_that_name_different_exams(exams, task):
    lines = exams.table("train", task).read_text().splitlines(keepends=True)
    exams.table("train", task).write_text("".join(lines[:-1]))
    assert "the exam 0006 is in train-" in (said := exams.refusal()) and f"but not in train-{task}.csv" in said


def test_a_tear_that_is_no_abnormality(exams):
    exams.tables({exam: (0, 1, 0) if exam == "0002" else ANSWERS[kind] for exam, kind in KINDS.items()})
    assert "the exam 0002 has a tear but is 0 in train-abnormal.csv" in exams.refusal()


@pytest.mark.parametrize("line", ["exam,label", "7,1", "0007;1", "0007,2", "0007,1,1", ""])
def test_lines_that_are_no_answers(exams, line):
    exams.table("train", "acl").write_text(f"0000,0\n{line}\n")
    assert "train-acl.csv, line 2: expected a four-digit exam, a comma, and 0 or 1, found" in exams.refusal()


def test_tables_of_other_systems_are_read(exams):
    expected = exams.prepare().labels.tolist()
    for part in ("train", "valid"):
        path = exams.table(part, "acl")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert exams.prepare().labels.tolist() == expected


@pytest.mark.parametrize("shape", [(256, 256), (20, 256, 255), (20, 128, 128), (0, 256, 256), (20, 256, 256, 1)])
def test_wrong_shapes(exams, shape):
    exams.save("0005", np.zeros(shape, np.uint8))
    assert f"0005.npy has the shape {shape}, expected (slices, 256, 256) with at least one slice" in exams.refusal()


@pytest.mark.parametrize("kind", ["uint16", "float32", "int8", "bool"])
def test_wrong_types(exams, kind):
    exams.save("0005", volume("0005").astype(kind))
    assert f"0005.npy is of type {kind}, expected uint8" in exams.refusal()


def test_pickled_arrays(exams):
    exams.save("0005", np.array([{"slices": 1}], object))
    assert "0005.npy is no plain .npy array" in (said := exams.refusal()) and "pickled objects are never loaded" in said
    exams.path("0005").write_bytes(pickle.dumps(volume("0005")[:1]))
    assert "0005.npy is no plain .npy array" in exams.refusal()


def test_damaged_files(exams):
    whole = exams.path("0005").read_bytes()
    for part in (whole[:len(whole)//2], whole[:60], b"", b"PK\x03\x04 an archive"):
        exams.path("0005").write_bytes(part)
        assert "0005.npy is no plain .npy array" in exams.refusal()


def test_missing_folders_and_tables(exams):
    exams.table("valid", "meniscus").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid-meniscus.csv was not found below .*register and accept the terms"): exams.prepare()


# --- the same for other slices ---------------------------------------------------------------------------------------

def test_no_two_phantom_patients_are_alike():
    report = leakage_report(prepare("phantom-knees"))
    assert not report.leaks and "200 patients, none of them in two splits" in report.summary


def test_real_slices_of_one_contrast():
    try: locate(load_manifest("lgg-36"))
    except FileNotFoundError as error: pytest.skip(f"no real images here: {error}")
    slices = as_original(one_channel(open_images("lgg-36", ["phantom-knees", "mrnet", "lgg-36"], [Resize(64)]), "FLAIR"))
    assert slices.images.shape == (732, 1, 64, 64) and slices.channels == ("FLAIR",)
    assert {name: len(rows) for name, rows in slices.splits.items()} == {"train": 611, "valid": 121}
