"""Folders as people have them: one bad file among a thousand ends with one line that names it, or is left out and counted."""
import os
import struct
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image

import medsyn.folders
from medsyn.folders import read_folder, read_masks, read_pairs
from medsyn.phantoms import blood_cells

CELLS = blood_cells(50)[0]
GREY = np.tile(CELLS[:, 1], (20, 1, 1))
RGB = CELLS[0].transpose(1, 2, 0)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def fill(folder, n=5):
    for i in range(n): save(folder / f"cell_{i:04}.png", GREY[i])
    return folder


def one_line(action, *args, **options):
    """The message of a refusal: one line, no traceback needed."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught: action(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    return message


def png(path, pixels, colour):
    """A PNG file of 16 bits a channel, which Pillow cannot write; `colour` is its colour type."""
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff(path, pixels):
    """An RGB TIFF file of 16 bits a channel, which Pillow cannot write either."""
    height, width, _ = pixels.shape
    end = 8 + 2 + 12*9 + 4
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, end), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, end + 6),
               (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, pixels.size*2)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + table + struct.pack("<IHHH", 0, 16, 16, 16) + pixels.astype("<u2").tobytes())


# --- one bad file among a thousand -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("thousand") / "cells", 1000)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cannot be read"),
    "text": (lambda path: path.write_text("404: not found"), "cannot be read"),
    "one byte changed": (lambda path: path.write_bytes(path.read_bytes()[:300] + b"\0\0\0\0" + path.read_bytes()[304:]), "cannot be read"),
    "a folder's link to nothing": (lambda path: (path.unlink(), path.symlink_to("nowhere.png")), "cannot be read"),
    "another size": (lambda path: save(path, GREY[0, :27]), "27 x 28 pixels, 1 channel, uint8, but 999 of 1000 files have 28 x 28"),
    "colour": (lambda path: save(path, RGB), "3 channels, uint8, but 999 of 1000 files have 28 x 28 pixels, 1 channel"),
    "16 bits": (lambda path: save(path, GREY[0].astype(np.uint16)), "uint16, but 999 of 1000 files"),
    "16-bit colour": (lambda path: png(path, RGB*np.uint16(257), 2), "16 bits a colour"),
    "16-bit grey and alpha": (lambda path: png(path, np.full((28, 28, 2), 65535, np.uint16), 4), "16 bits a colour"),
    "palette": (lambda path: save(path, Image.fromarray(RGB).quantize(16)), "colour mode P"),
    "transparent": (lambda path: save(path, np.dstack([GREY[0], GREY[1]])), "transparent"),
    "animated": (lambda path: save(path, GREY[0], save_all=True, append_images=[Image.fromarray(GREY[1])]), "2 pictures"),
    "a JPEG inside": (lambda path: save(path, GREY[0], format="JPEG"), "is a JPEG file"),
    "a tiny one": (lambda path: save(path, GREY[0, :3]), "3 x 28 pixels"),
}


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_file_among_a_thousand(thousand, bad):
    spoil, words = BAD[bad]
    path, others = thousand / "cell_0500.png", np.delete(np.arange(1000), 500)
    whole = path.read_bytes()
    try:
        spoil(path)
        message = one_line(read_folder, thousand)
        images, report = read_folder(thousand, skip_bad=True)
    finally:
        path.unlink()
        path.write_bytes(whole)
    assert message.startswith(f"{path} ") and words in message, message
    assert [skip.file for skip in report.skipped] == ["cell_0500.png"] and report.skipped[0].reason in message
    assert report.files == report.images == len(images) == 999 and "999 images from 999 PNG files; 1 left out: cell_0500.png" in str(report)
    assert (images.images[:, 0] == GREY[others]).all() and images.cases.tolist() == [f"cell_{i:04}" for i in others]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for i, scan in enumerate(np.float32(GREY)/255): np.save(folder / f"{i:03}.npy", scan)
    return folder


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (np.inf, "infinite"), (1.5, "to 1.5, outside value_range (0, 1)")])
def test_one_bad_value_among_a_thousand(scans, value, words):
    spoilt = np.float32(GREY[700])/255
    spoilt[3, 3] = value
    np.save(scans / "700.npy", spoilt)
    message = one_line(read_folder, scans, value_range=(0, 1))
    assert "700.npy" in message and words in message
    images, report = read_folder(scans, skip_bad=True, value_range=(0, 1))
    assert [skip.file for skip in report.skipped] == ["700.npy"]
    assert (images.images[:, 0] == np.delete(np.float32(GREY)/255, 700, axis=0)).all()


# --- what is no fault of one file ------------------------------------------------------------------------------------

def links_in_a_circle(folder):
    fill(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "again").symlink_to(folder, target_is_directory=True)


@pytest.mark.parametrize(("make", "words"), [
    (lambda f: None, "there is no folder"),
    (lambda f: f.write_text("x"), "is a file"),
    (lambda f: f.mkdir(), "found no files"),
    (lambda f: (f.mkdir(), (f / ".hidden.png").write_bytes(b"x")), "found no files"),
    (lambda f: (f.mkdir(), (f / "scan.dcm").write_bytes(b"x")), "found scan.dcm"),
    (lambda f: fill(f, 1), "1 usable image"),
    (lambda f: (fill(f), save(f / "new.tiff", GREY[0])), "new.tiff"),
    (lambda f: (fill(f), fill(f / "class")), "class/cell_0000.png"),
    (lambda f: fill(f / "a" / "b"), "a/b/cell_0000.png"),
    (links_in_a_circle, "sub/again/cell_0000.png"),
])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_no_folder_of_images(tmp_path, make, words, skip_bad):
    make(tmp_path / "images")
    message = one_line(read_folder, tmp_path / "images", skip_bad)
    assert str(tmp_path / "images") in message and words in message


def test_two_of_three_bad_is_too_many(tmp_path):
    fill(tmp_path, 3)
    for name in ("cell_0000.png", "cell_0002.png"): (tmp_path / name).write_bytes(b"")
    message = one_line(read_folder, tmp_path, skip_bad=True)
    assert "1 usable image" in message and "2 left out, the first cell_0000.png" in message


def test_all_deep_is_no_fault_to_be_skipped(tmp_path):
    for i in range(3): save(tmp_path / f"{i}.png", GREY[i].astype(np.uint16))
    assert "give value_range" in one_line(read_folder, tmp_path, skip_bad=True)
    assert read_folder(tmp_path, value_range=(0, 65535)).images.images.dtype == np.float32


def test_more_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(medsyn.folders.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert "GiB of memory" in one_line(read_folder, fill(tmp_path / "images"))


def test_slow_folders_show_progress(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(medsyn.folders, "PATIENCE", -1)
    monkeypatch.setattr(medsyn.folders, "progress", lambda *words: shown.append(words) or medsyn.runs.progress(*words))
    read_folder(fill(tmp_path / "images"))
    assert shown == [(5, "looking at images", "file", 1), (5, "reading images", "file", 1)]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_locked_folder(tmp_path):
    fill(tmp_path / "images").chmod(0)
    assert "cannot be opened" in one_line(read_folder, tmp_path / "images")


# --- formats ---------------------------------------------------------------------------------------------------------

def test_colour_of_16_bits_is_never_cut_in_silence(tmp_path):
    for i in range(2): tiff(tmp_path / f"{i}.tif", RGB*np.uint16(257))
    assert Image.open(tmp_path / "0.tif").mode == "RGB"  # all that Pillow says
    assert "16 bits a colour" in one_line(read_folder, tmp_path)


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("tif", {}), ("tiff", {"compression": "tiff_lzw"}),
                                                 ("TIF", {"compression": "tiff_deflate"})])
@pytest.mark.parametrize("pixels", [CELLS[:2, 0], CELLS[:2].transpose(0, 2, 3, 1)], ids=["grey", "colour"])
def test_lossless_pictures_come_back_exactly(tmp_path, ending, options, pixels):
    for i, picture in enumerate(pixels): save(tmp_path / f"{i}.{ending}", picture, **options)
    images = read_folder(tmp_path).images.images
    assert (images == pixels.reshape(2, 28, 28, -1).transpose(0, 3, 1, 2)).all() and images.dtype == np.uint8


def test_a_range_is_compared_in_the_precision_of_the_images(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 9, 9), 0.1))
    assert read_folder(tmp_path, value_range=(0, 0.1)).images.tensor().max() == 1  # float32(0.1) is larger than 0.1


def test_scaled_integers_in_nifti(tmp_path):
    stored = nibabel.Nifti1Image(np.arange(16*16*4, dtype=np.int16).reshape(16, 16, 4), np.eye(4))
    stored.header.set_slope_inter(0.5, 10)
    for name in ("a.nii", "b.nii.gz"): nibabel.save(stored, tmp_path / name)
    images = read_folder(tmp_path, value_range=(0, 1000)).images
    values = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    assert len(images) == 8 and (images.images[:4] == images.images[4:]).all()
    assert (images.images[2, 0, ::-1, ::-1].T == values[:, :, 2]).all() and values.max() > 500


def test_a_gz_volume_is_read_to_its_checksum(tmp_path):
    volume = np.random.default_rng(0).normal(size=(16, 16, 4)).astype(np.float32)
    for name in "abc": nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    data = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(data[:-8] + bytes(4) + data[-4:])
    assert "b.nii.gz cannot be read (CRC check failed" in one_line(read_folder, tmp_path, value_range=(-9, 9))
    images, report = read_folder(tmp_path, skip_bad=True, value_range=(-9, 9))
    assert len(images) == 8 and report.files == 2 and set(images.patients) == {"a", "c"}


# --- partners and masks ----------------------------------------------------------------------------------------------

def test_partners_survive_bad_files_on_either_side(tmp_path):
    real, fake = fill(tmp_path / "real", 8), fill(tmp_path / "fake", 8)
    (real / "cell_0001.png").write_bytes(b"")
    (fake / "cell_0005.png").unlink()
    save(fake / "stranger.png", GREY[0])
    one, two = read_pairs(real, fake, skip_bad=True)
    assert one.images.cases.tolist() == two.images.cases.tolist() == [f"cell_{i:04}" for i in (0, 2, 3, 4, 6, 7)]
    assert (one.images.images == two.images.images).all() and (one.images.images[:, 0] == GREY[[0, 2, 3, 4, 6, 7]]).all()
    assert [skip.file for skip in one.report.skipped] == ["cell_0001.png", "cell_0005"] and one.report.files == 6
    assert [skip.file for skip in two.report.skipped] == ["cell_0001", "stranger"]
    assert "cell_0001.png" in one_line(read_pairs, real, fake)


def test_volumes_are_partners_as_a_whole(tmp_path):
    for folder, depth in (("real", 6), ("fake", 5)):
        (tmp_path / folder).mkdir()
        for name, z in (("a", 6), ("b", depth), ("c", 6)): np.save(tmp_path / folder / f"{name}.npy", np.zeros((z, 9, 9), np.uint8))
    assert "real/b has no partner in" in one_line(read_pairs, tmp_path / "real", tmp_path / "fake")
    one, two = read_pairs(tmp_path / "real", tmp_path / "fake", skip_bad=True)
    assert len(one.images) == len(two.images) == 12 and set(one.images.cases) == {"a", "c"}


def test_masks_beside_their_images(tmp_path):
    for i in range(4):
        save(tmp_path / "x" / f"{i}.png", GREY[i])
        save(tmp_path / "x" / f"{i}_mask.png", np.uint8(GREY[i] < 150)*np.uint8(255))
    images, report = read_folder(tmp_path)
    masked, of_masks = read_masks(tmp_path, images)
    assert len(images) == 4 and report.passed_over == tuple(f"x/{i}_mask.png" for i in range(4)) and of_masks.files == 4
    assert (masked.masks[:, 0] == (GREY[:4] < 150)).all() and masked.labels.tolist() == [0]*4


def test_masks_of_volumes(tmp_path):
    volume = np.random.default_rng(0).random((16, 12, 5)).astype(np.float32)
    for folder, values in (("images", volume), ("masks", np.float32(volume > 0.5))):
        (tmp_path / folder).mkdir()
        for name in "ab": nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / folder / f"{name}.nii.gz")
    images = read_folder(tmp_path / "images", value_range=(0, 1)).images
    masked, _ = read_masks(tmp_path / "masks", images)
    assert masked.masks.shape == (10, 1, 12, 16) and (masked.masks == (images.images > 0.5)).all()
    nibabel.save(nibabel.Nifti1Image(volume[..., :4], np.eye(4)), tmp_path / "masks" / "b.nii.gz")
    assert "b.nii.gz holds 4 masks for 5 images" in one_line(read_masks, tmp_path / "masks", images)
    masked, report = read_masks(tmp_path / "masks", images, skip_bad=True)
    assert set(masked.patients) == {"a"} and len(masked) == 5 and [skip.file for skip in report.skipped] == ["b.nii.gz"]


def test_masks_need_names(tmp_path):
    nameless = medsyn.datasets.ImageSet(CELLS)
    assert "read it with read_folder" in one_line(read_masks, fill(tmp_path / "masks"), nameless)
