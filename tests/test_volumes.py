"""Volumes as people have them: other shapes and orientations, files not as they should be, and sets larger than memory."""
import gzip
import hashlib
import re
import shutil
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from medsyn.datasets import Resize, prepare
from medsyn.manifests import File, load_manifest, locate
from medsyn.runs import file_digest
from medsyn.volumes import contrast_files, read_volume, resize_masks, resize_slices, scale_volume, write_volume

SHA256 = {"train": "403e40f96fa68d7f4aae6bd034d6b9ce929527feb7c1f99d45fd46ae485feb0f",
          "val": "85a92ff07bfc33958bc20f22e9e80bbdd7573188cc227689e4d071782c795489",
          "test": "687c5b5d85c2cf0c76e40296f588f8851fbb0805b6403bb1411be6e328394778"}  # of the sorted ids, one a line: dossier 2.2


def numbers(shape, seed=0):
    """A brain of random brightness on black background."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return np.float32(np.random.default_rng(seed).integers(1, 900, shape) * ((grid**2).sum(0) < 1.5))


def store(path, array, codes="RAS", affine=None, dtype=np.float32, scale=(1, 0)):
    """Save an array in RAS order as a file whose axes point along `codes`."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = (np.diag([1, 1, 2, 1.]) if affine is None else affine) @ inv_ornt_aff(turn, array.shape)
    image = nibabel.Nifti1Image(((apply_orientation(array, turn) - scale[1])/scale[0]).astype(dtype), affine)
    image.header.set_slope_inter(*scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def some_cases(folder, names, shape=(10, 12, 8), contrasts=("T1", "FLAIR"), mask=True):
    """A case with two contrasts and a mask for each name, in folder/mine."""
    for seed, name in enumerate(names):
        for k, contrast in enumerate(contrasts): store(folder/"mine"/name/f"{name}_{contrast}.nii.gz", numbers(shape, 10*seed + k), "LPS")
        if mask: store(folder/"mine"/name/f"{name}_seg.nii.gz", 2*(numbers(shape, 10*seed) > 600), "LPS", dtype=np.uint8)


def manifest(**options):
    options = {"kind": "case-folders", "size": 16, "slices": 6, "mask": "_seg", "splits": {"train": "rest", "test": ["B"]}} | options
    return replace(load_manifest("open-ms"), name="mine", files=[File("mine/")], channels=["T1", "FLAIR"], reader=options)


def refusal(folder, message, **options):
    """Preparing fails with one line that holds `message`."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught: prepare(manifest(**options), root=folder)
    assert "\n" not in str(caught.value) and message in str(caught.value), caught.value


# --- one file --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL", "SRP"])
@pytest.mark.parametrize("scale", [(1, 0), (0.25, -7)])
def test_a_volume_comes_back_to_where_it_was(tmp_path, codes, scale):
    affine = np.array([[1.5, .1, 0, -30], [-.1, 2, .3, 12], [0, -.2, 4, 5], [0, 0, 0, 1]])
    array = numbers((9, 11, 5))
    source = nibabel.load(store(tmp_path/"a.nii.gz", array, codes, affine, np.int16, scale))
    volume = read_volume(tmp_path/"a.nii.gz")
    assert (volume.array == array).all() and np.abs(volume.affine - affine).max() < 1e-5 and volume.orientation == codes
    assert np.abs(np.array(volume.spacing) - np.linalg.norm(affine[:3, :3], axis=0)).max() < 1e-5
    write_volume(tmp_path/"b.nii.gz", volume.array*2, volume)
    written = nibabel.load(tmp_path/"b.nii.gz")
    assert (written.affine == source.affine).all() and written.shape == source.shape and written.get_data_dtype() == np.float32
    assert (np.asarray(written.dataobj) == np.asarray(source.dataobj)*2).all()
    for field in ("sform_code", "qform_code", "pixdim", "srow_x", "quatern_b", "qoffset_z"):
        assert (written.header[field] == source.header[field]).all(), field


def test_qform_alone_big_endian_and_nifti_2(tmp_path):
    array = numbers((6, 7, 8))
    turned = nibabel.Nifti1Image(array, None)
    turned.set_qform(np.array([[0, -2, 0, 3.3], [2, 0, 0, -4.7], [0, 0, 3, 1.1], [0, 0, 0, 1]]), code=1)
    turned.set_sform(None, code=0)
    big = nibabel.Nifti1Image(array, np.diag([-1, 1, 1, 1.]), nibabel.Nifti1Header(endianness=">"))
    for image in (turned, big, nibabel.Nifti2Image(array, np.diag([-1, -1, .1, 1])), nibabel.Nifti1Image(array[..., None], np.eye(4))):
        nibabel.save(image, tmp_path/"a.nii")
        volume, source = read_volume(tmp_path/"a.nii"), nibabel.load(tmp_path/"a.nii")
        write_volume(tmp_path/"b.nii.gz", volume.array, volume)
        written = nibabel.load(tmp_path/"b.nii.gz")
        assert (written.affine == source.affine).all() and written.shape == source.shape and type(written) is type(source)
        assert (np.asarray(written.dataobj) == np.asarray(source.dataobj)).all()
        assert written.header["qform_code"] == source.header["qform_code"]


def test_what_is_no_volume_is_refused_in_one_line(tmp_path):
    whole = store(tmp_path/"whole.nii.gz", numbers((20, 20, 20))).read_bytes()
    (tmp_path/"cut.nii.gz").write_bytes(whole[:len(whole)//2])
    (tmp_path/"tail.nii.gz").write_bytes(whole[:-4])
    (tmp_path/"sum.nii.gz").write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    (tmp_path/"text.nii").write_text("no volume at all")
    (tmp_path/"empty.nii.gz").touch()
    (tmp_path/"junk.nii.gz").write_bytes(gzip.compress(b"x"*900))
    broken = bytearray(gzip.decompress(whole))
    broken[280:328] = bytes(48)  # the rows of the sform
    (tmp_path/"affine.nii").write_bytes(broken)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path/"two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4), np.float32), np.eye(4)), tmp_path/"slice.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path/"black.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"]), np.eye(4)), tmp_path/"colour.nii.gz")
    expected = {"cut": "damaged", "tail": "damaged", "sum": "CRC", "text": "not a NIfTI", "empty": "not a NIfTI", "junk": "not a NIfTI",
                "affine": "affine", "two": "several volumes", "slice": "expected a volume", "black": "the value 0", "colour": "one number"}
    for name, words in expected.items():
        path = next(tmp_path.glob(f"{name}.nii*"))
        with pytest.raises(ValueError, match=words) as caught: read_volume(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere.nii"): read_volume(tmp_path/"nowhere.nii")


def test_missing_numbers_are_background_and_are_told(tmp_path, capsys):
    array = numbers((5, 6, 7))
    holes = array.copy()
    holes[0, 0, :3] = np.nan, np.inf, -np.inf
    found = read_volume(store(tmp_path/"a.nii", holes)).array
    assert (found[0, 0, :3] == 0).all() and (found[1:] == array[1:]).all()
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/a.nii: 3 of 210 voxels .*\n", capsys.readouterr().err)


def test_a_negative_background_is_background():
    array = numbers((12, 12, 12))
    below = np.where(array == 0, np.float32(-50), array)
    assert (scale_volume(below) == scale_volume(array)).all() and scale_volume(below).min() == 0
    with pytest.raises(ValueError, match="no voxel is above 0"): scale_volume(-array)


@pytest.mark.parametrize(("shape", "size"), [((7, 9), 12), ((9, 7), 4), ((8, 8), 8), ((1, 30), 5)])
def test_resizing_keeps_values_in_range_and_place(shape, size):
    picture = numbers((3, *shape))
    resized = resize_slices(picture, size)
    assert resized.shape == (3, size, size) and picture.min() <= resized.min() <= resized.max() <= picture.max()
    assert np.abs(resize_slices(picture.transpose(0, 2, 1), size) - resized.transpose(0, 2, 1)).max() < 1e-3
    assert set(np.unique(resize_masks(np.uint8(picture > 400), size))) <= {0, 1}


# --- names -----------------------------------------------------------------------------------------------------------

def named(folder, names):
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).touch()
    return folder


@pytest.mark.parametrize("names", [
    "B_t1.nii.gz B_t1ce.nii.gz B_t2.nii.gz B_flair.nii.gz B_seg.nii.gz",
    "T1_N4_regtoFLAIR.nii.gz T1POST_N4_regtoFLAIR.nii.gz T2_N4_regtoFLAIR.nii.gz FLAIR_N4_brain_N4_regtoMNI.nii.gz GOLD_STANDARD.nii.gz",
    "X-7294_t1_bet.nii.gz X-7294_t1c_bet.nii.gz X-7294_t2_bet.nii.gz X-7294_fla_bet.nii.gz",
    "T1.nii T1Gd.nii T2.nii FLAIR.nii", "x-t1n.nii.gz x-t1c.nii.gz x-t2w.nii.gz x-t2f.nii.gz", "t1 pre.NII t1 post.NII T2.NII t2-flair.NII",
    "1/V.MR_T1.1.nii 2/V.MR_T1c.2.nii 3/V.MR_T2.3.nii 4/V.MR_Flair.4.nii 5/V.OT.5.nii"])
def test_usual_names_are_understood(tmp_path, names):
    names = [name.replace(" ", "_") for name in names.split(" ")] if "pre" not in names else names.replace(".NII ", ".NII|").split("|")
    found = contrast_files(named(tmp_path, names), ["T1", "T1ce", "T2", "FLAIR"])
    assert [path.relative_to(tmp_path).as_posix() for path in found.values()] == names[:4]


def test_doubled_and_missing_contrasts_are_named(tmp_path):
    named(tmp_path, ["a_T1.nii", "b_t1.nii.gz", "T2.nii"])
    with pytest.raises(ValueError, match="a_T1.nii and b_t1.nii.gz are all T1"): contrast_files(tmp_path, ["T1"])
    with pytest.raises(ValueError, match="no file is FLAIR; found T2.nii, a_T1.nii, b_t1.nii.gz"): contrast_files(tmp_path, ["T2", "FLAIR"])
    assert list(contrast_files(tmp_path, ["T1", "T2", "FLAIR"], {"T1": "^b"}, missing_ok=True)) == ["T1", "T2"]


# --- folders of cases ------------------------------------------------------------------------------------------------

def test_cases_become_slices_in_place(tmp_path):
    some_cases(tmp_path, "ABC", shape=(10, 14, 9))
    images = prepare(manifest(), root=tmp_path)
    assert images.images.shape == (18, 2, 16, 16) and images.masks.shape == (18, 1, 16, 16) and images.value_range == (0, 1)
    assert images.cases[::6].tolist() == [*"ABC"] == images.patients[::6].tolist() and images.slices[:6].tolist() == [*range(1, 7)]
    assert images.split("test").cases.tolist() == ["B"]*6 and set(np.unique(images.masks)) == {0, 1}
    scaled = scale_volume(numbers((10, 14, 9), 11))  # FLAIR of B
    expected = resize_slices(scaled[::-1, ::-1].transpose(2, 1, 0)[1:7], 16)
    assert np.abs(images.images[6:12, 1] - expected).max() < 1e-6
    assert prepare(manifest(), [Resize(8)], root=tmp_path).masks.shape == (18, 1, 8, 8)
    assert -1 == images.tensor().min() < images.tensor().max() <= 1


def test_patients_of_several_cases_stay_together(tmp_path):
    some_cases(tmp_path, ["P1_a", "P1_b", "P2_a", "P3_a", "P4_a"], mask=False)
    images = prepare(manifest(mask="", patient="^(P.)_", splits={"train": 50, "test": 50}), root=tmp_path)
    assert images.patients[::6].tolist() == ["P1", "P1", "P2", "P3", "P4"] and images.masks is None
    assert images.check_patients() == "mine: 4 patients, none of them in two splits"
    images = prepare(manifest(mask="", cases="_a$", splits={"train": "rest"}), root=tmp_path)
    assert images.cases[::6].tolist() == ["P1_a", "P2_a", "P3_a", "P4_a"]


def test_cases_that_do_not_fit_are_named(tmp_path):
    some_cases(tmp_path, "AB")
    flair, mask = tmp_path/"mine/A/A_FLAIR.nii.gz", tmp_path/"mine/A/A_seg.nii.gz"
    kept, kept_mask = flair.read_bytes(), mask.read_bytes()
    refusal(tmp_path, "A_T1.nii.gz: 9 slices were asked for, but the volume has 8", slices=9)
    store(flair, numbers((10, 12, 8)), affine=np.diag([1, 1, 2.01, 1]))
    refusal(tmp_path, f"{flair} and {flair.with_name('A_T1.nii.gz')} do not lie on the same grid (affines up to")
    store(flair, numbers((10, 13, 8)))
    refusal(tmp_path, "(10, 13, 8) and (10, 12, 8) voxels")
    flair.unlink()
    refusal(tmp_path, f"{flair.parent}: no file is FLAIR; found A_T1.nii.gz, A_seg.nii.gz")
    flair.write_bytes(kept[:-20])
    refusal(tmp_path, "A_FLAIR.nii.gz is damaged")
    store(flair, np.float32(numbers((10, 12, 8)) > 0))
    refusal(tmp_path, "A_FLAIR.nii.gz: the percentiles 1 and 99 of the voxels above 0 are both 1")
    flair.write_bytes(kept)
    store(mask, numbers((10, 12, 8))/2)
    refusal(tmp_path, "A_seg.nii.gz: a mask holds whole numbers")
    store(mask, numbers((10, 12, 8)), affine=np.diag([1, 1, 3., 1]))
    refusal(tmp_path, "A_seg.nii.gz and")
    mask.write_bytes(kept_mask)
    store(flair, numbers((10, 12, 8)), "PIR")  # the same grid, stored along other axes
    assert len(prepare(manifest(), root=tmp_path)) == 12
    shutil.copytree(flair.parent, tmp_path/"more"/"A")
    with pytest.raises(ValueError, match="cases of the same name"):
        prepare(replace(manifest(), files=[File("mine/"), File("more/")]), root=tmp_path)


def test_a_list_of_checksums_is_heeded(tmp_path):
    some_cases(tmp_path, "AB")
    files = sorted((tmp_path/"mine").glob("*/*"))
    (tmp_path/"mine"/"SHA256SUMS").write_text("".join(f"{file_digest(path)}  {path.parent.name}/{path.name}\n" for path in files))
    listed = replace(manifest(), files=[File("mine/SHA256SUMS")])
    assert len(prepare(listed, root=tmp_path)) == 12
    assert len(prepare(replace(listed, channels=["T1"]), root=tmp_path)) == 12  # what is not asked for may be listed
    store(files[0], numbers((10, 12, 8), 7))
    with pytest.raises(ValueError, match="A_FLAIR.nii.gz has the wrong checksum"): prepare(listed, root=tmp_path)
    (tmp_path/"mine/B/B_T2.nii").touch()
    with pytest.raises(ValueError, match="1 files are not in SHA256SUMS, first B/B_T2.nii"): prepare(listed, root=tmp_path)


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    """Bytes that Python and NumPy allocate at most; memory maps are not among them."""
    some_cases(tmp_path, "ABCDEF", shape=(48, 48, 24))
    def peak(cases):
        tracemalloc.start()
        images = prepare(manifest(size=64, slices=20, cases=cases, splits={"train": "rest"}), [Resize(48)], root=tmp_path)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return len(images), highest
    peak("A")  # whatever is loaded once
    (two, low), (six, high) = peak("[AB]"), peak("[A-F]")
    assert (two, six) == (40, 120) and low > 20*2*64*64*4
    assert high < 1.05*low, (low, high)


# --- arrays of slices ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [str, str.upper, str.lower])
def test_arrays_of_the_original_are_read(tmp_path, change):
    rng = np.random.default_rng(0)
    given = {split: rng.random((4, 3*(k + 1), 16, 16)) for k, split in enumerate(("train", "val", "test"))}
    official = load_manifest("mudiff-arrays")
    for split, arrays in given.items():
        (tmp_path/split).mkdir()
        for channel, array in zip(official.channels, arrays, strict=True): np.save(tmp_path/split/f"{change(channel)}.npy", array)
    small = replace(official, reader=official.reader | {"size": 16, "slices_per_volume": 3})
    images = prepare(small, root=tmp_path)
    assert images.images.dtype == np.float32 and images.value_range == (0, 1) and images.match == "official"
    for split, arrays in given.items():
        assert (images.split(split).images == arrays.transpose(1, 0, 3, 2).astype(np.float32)).all()
    assert np.unique(images.patients).tolist() == ["test-000", "test-001", "test-002", "train-000", "val-000", "val-001"]
    np.save(tmp_path/"val"/f"{change('T2')}.npy", given["val"][2] + 1)
    with pytest.raises(ValueError, match="expected .0, 1."): prepare(small, root=tmp_path)
    (tmp_path/"val"/f"{change('T2')}.npy").unlink()
    with pytest.raises(FileNotFoundError, match="no T2.npy, in letters of either case: found"): prepare(small, root=tmp_path)


# --- manifests -------------------------------------------------------------------------------------------------------

def test_the_original_s_patients_of_brats():
    reader = load_manifest("brats2019").reader
    for split, names in reader["splits"].items():
        assert hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest() == SHA256[split]
        assert all(re.search(reader["cases"], name) for name in names)
    assert not re.search(reader["cases"], "BraTS19_2013_2_1")
    assert {split: len(names) for split, names in reader["splits"].items()} == {"train": 214, "val": 61, "test": 30}


def test_isles_as_it_is_unpacked(tmp_path):
    """Every file has a number and a folder of its own; patient 28 is not used."""
    official = load_manifest("isles2015")
    small = replace(official, reader=official.reader | {"size": 8, "slices": 3})
    for case in range(1, 29):
        for k, kind in enumerate(("MR_DWI", "MR_Flair", "MR_T1", "MR_T2", "OT")):
            stem = f"VSD.Brain.XX.O.{kind}.{70000 + 9*case + k}"
            array = numbers((6, 7, 5), 10*case + k)
            store(tmp_path/f"SISS2015_Training/{case}/{stem}/{stem}.nii", array if kind != "OT" else np.uint8(array > 500))
    images = prepare(small, root=tmp_path)
    assert {split: len(rows) for split, rows in images.splits.items()} == {"train": 60, "val": 6, "test": 15}
    assert set(images.split("test").patients) == {"23", "24", "25", "26", "27"} and "28" not in images.patients
    assert official.channels == ["T1", "T2", "DWI", "FLAIR"] and set(np.unique(images.masks)) == {0, 1}


def test_phantoms_of_all_contrasts():
    images = prepare("phantom-contrasts")
    assert images.images.shape == (1200, 4, 64, 64) and images.channels == ("T1", "T1ce", "T2", "FLAIR")
    assert {split: len(rows) for split, rows in images.splits.items()} == {"train": 840, "val": 120, "test": 240}


# --- real volumes ----------------------------------------------------------------------------------------------------

def real(name):
    try: return locate(load_manifest(name))
    except FileNotFoundError as error: pytest.skip(f"no real volumes here: {error}")


def test_real_volumes_of_multiple_sclerosis(tmp_path):
    folder = real("open-ms")
    official = load_manifest("open-ms")
    images = prepare(replace(official, reader=official.reader | {"size": 64, "slices": 20}), cache=tmp_path)
    assert images.images.shape == (40, 4, 64, 64) and set(images.split("test").patients) == {"patient26"}
    lesions, flair = np.asarray(images.masks[:, 0]) > 0, np.asarray(images.images[:, 3])
    assert lesions.any() and flair[lesions].mean() > flair[flair > 0].mean() + 0.1  # lesions are bright on FLAIR
    path = next((folder/"open_ms_multicontrast/patient19").glob("FLAIR*"))
    volume = read_volume(path)
    assert volume.orientation == "LAS" and volume.spacing == (1, 1, 1) and volume.array.min() < 0
    write_volume(tmp_path/"back.nii.gz", volume.array, volume)
    back, source = nibabel.load(tmp_path/"back.nii.gz"), nibabel.load(path)
    assert (back.affine == source.affine).all() and (np.asarray(back.dataobj) == np.asarray(source.dataobj)).all()


def test_a_real_volume_as_brats_stores_it(tmp_path):
    """The original's way, third axis and transposition, gives the same slices from such files."""
    folder = real("tcga-lgg-volume")
    images = prepare("tcga-lgg-volume", cache=tmp_path)
    assert images.images.shape == (80, 4, 256, 256) and images.slices.tolist() == [*range(37, 117)] and images.masks is None
    stored = nibabel.load(next((folder/"tcga_lgg_multicontrast/TCGA-DU-7294").glob("*t1c*"))).get_fdata()
    low, high = np.percentile(stored[stored > 0], (1, 99))
    stored = (stored.clip(low, high) - low)/(high - low)
    expected = resize_slices(stored[:, :, 37:117].transpose(2, 0, 1), 256).transpose(0, 2, 1)
    assert np.abs(images.images[:, 1] - expected).max() < 1e-5
