"""From nothing to figures: a wheel in a new environment, plain papermill, seeds, resuming, Ctrl-C."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn.results import read_results
from medsyn.runner import notebook_of, papers

REPOSITORY = Path(__file__).resolve().parents[1]
MEDSYN = Path(sys.executable).with_name("medsyn")
PAPER, RUN = "bloodmnist_ddpm", "smoke-phantom"


def call(*words, cwd, **environment):
    done = subprocess.run([str(word) for word in words], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800,
                          env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def fresh_environment(tmp_path_factory):
    """A new environment that holds medsyn's wheel, and borrows its dependencies (not medsyn) from this one."""
    folder = tmp_path_factory.mktemp("environment")
    copy = folder / "source"
    ignored = shutil.ignore_patterns(".venv", ".git", "runs", "results", "build", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", next(folder.glob("*.whl")), cwd=folder)
    packages = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(copy)
    return folder / "venv" / "bin"


@pytest.fixture(scope="session")
def wheel_runs(fresh_environment, tmp_path_factory):
    """Every paper at smoke scale, seed 0, by the installed wheel, in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    call(fresh_environment / "medsyn", "run", "all", cwd=folder)
    return folder


def tables(folder):
    """The figures' tables, but for the costs, which hold timings."""
    return {path.name: path.read_text() for path in sorted((folder / "tables").glob("*.csv")) if not path.name.startswith("cost")}


def test_the_wheel_is_what_ran(fresh_environment, tmp_path):
    place = call(fresh_environment / "python", "-c", "import medsyn; print(medsyn.__file__)", cwd=tmp_path)
    assert str(fresh_environment.parent) in place and str(REPOSITORY) not in place


@pytest.mark.parametrize("paper", papers())
def test_a_run_is_whole(paper, wheel_runs):
    folder = wheel_runs / "runs" / paper / RUN
    results = read_results(folder / "results.json")
    assert results["scores"] and results["figures"] and results["costs"]
    assert {score["verdict"] for score in results["scores"]} <= {"smoke", "reproduced", "not reproduced"}
    for figure in results["figures"]:
        with Image.open(folder / figure["file"]) as picture: assert min(picture.size) > 100
        with open(folder / figure["data"]) as file: assert len(list(csv.reader(file))) > 1, figure["id"]
    assert sum(row["TFLOP in all"] for row in results["costs"]) < 1.5, "the smoke budget"
    assert json.loads((folder / "provenance.json").read_text())["complete"]
    assert (folder / "reproduce.ipynb").stat().st_size < 2_000_000


def test_a_finished_run_is_not_repeated_and_reported(fresh_environment, wheel_runs):
    notebook = wheel_runs / "runs" / PAPER / RUN / "reproduce.ipynb"
    before = notebook.stat().st_mtime_ns
    call(fresh_environment / "medsyn", "run", PAPER, cwd=wheel_runs)
    assert notebook.stat().st_mtime_ns == before
    said = call(fresh_environment / "medsyn", "report", cwd=wheel_runs)
    page = (wheel_runs / said.split("report: ")[1].strip()).read_text()
    assert "<html" in page and PAPER in page and "src=\"http" not in page and page.count("data:image/png") >= 5


def test_samples_from_a_finished_run(fresh_environment, wheel_runs, tmp_path):
    call(fresh_environment / "medsyn", "sample", wheel_runs / "runs" / PAPER / RUN, "--n", "3", "--out", tmp_path, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png", "00002.png", "samples.npz"]


def test_slices_of_ones_own_are_enlarged(fresh_environment, wheel_runs, tmp_path):
    run, given, out = wheel_runs / "runs" / "srddpm" / RUN, tmp_path / "given", tmp_path / "out"
    given.mkdir()
    for k in range(3): Image.fromarray(np.full((16, 16), 60*k, np.uint8)).save(given / f"slice{k}.png")
    said = call(fresh_environment / "medsyn", "sample", run, "--image", given, "--out", out, cwd=tmp_path)
    for k in range(3):
        with Image.open(out / f"slice{k}.png") as picture: assert picture.size == (32, 32) and picture.mode == "L"
        assert f"slice{k}.png" in said
    for k in range(3): Image.new("L", (20, 20)).save(given / f"slice{k}.png")
    words = [str(fresh_environment / "medsyn"), "sample", str(run), "--image", str(given), "--out", str(out)]
    done = subprocess.run(words, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "20 x 20" in done.stderr and "16 x 16" in done.stderr and "Traceback" not in done.stderr


def test_plain_papermill_on_the_installed_notebook_gives_the_same_numbers(fresh_environment, wheel_runs, tmp_path):
    """Also: no result depends on anything but its seed."""
    ask = f"from medsyn.runner import notebook_of; print(notebook_of('{PAPER}'))"
    where = call(fresh_environment / "python", "-c", ask, cwd=tmp_path).strip()
    assert str(fresh_environment.parent) in where
    call(fresh_environment / "python", "-m", "papermill", where, tmp_path / "out.ipynb", "-p", "scale", "smoke", cwd=tmp_path)
    ours, theirs = tables(tmp_path / "runs" / PAPER / RUN), tables(wheel_runs / "runs" / PAPER / RUN)
    assert ours.keys() == theirs.keys() and [name for name in ours if ours[name] != theirs[name]] == []


def test_another_seed_gives_other_numbers(wheel_runs, tmp_path):
    call(MEDSYN, "run", PAPER, "--seeds", "1", "--set", "sampler_budgets=[5,9]", cwd=tmp_path)
    folder = tmp_path / "runs" / PAPER / RUN
    driven = [Path(figure["data"]).name for figure in read_results(folder / "results.json")["figures"] if not figure["schematic"]]
    ours, theirs = tables(folder), tables(wheel_runs / "runs" / PAPER / RUN)
    same = [name for name in driven if name in ours and ours[name] == theirs[name]]
    assert same == [] and len(driven) > 5


def test_plain_papermill_refuses_what_the_runner_refuses(tmp_path):
    words = [sys.executable, "-m", "papermill", str(notebook_of(PAPER)), str(tmp_path / "out.ipynb"), "-p", "scale", "lapto"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "did you mean 'laptop'" in done.stderr


def test_a_refused_request_loses_nothing(wheel_runs, tmp_path):
    """Settings that do not fit the trainings of the folder: refused by the trainer, and the former results come back."""
    shutil.copytree(wheel_runs / "runs" / PAPER / RUN, tmp_path / "runs" / PAPER / RUN)
    before = (tmp_path / "runs" / PAPER / RUN / "results.json").read_bytes()
    words = [str(MEDSYN), "run", PAPER, "--set", "a_batch=16"]
    done = subprocess.run(words, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "batch_size: was 32, now 16" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "runs" / PAPER / RUN / "results.json").read_bytes() == before
    read_results(tmp_path / "runs" / PAPER / RUN / "results.json")


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    words = [str(MEDSYN), "run", PAPER, "--set", "a_images=400000"]
    process = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    training = tmp_path / "runs" / PAPER / RUN / "training" / "release-a-seed0"
    end = time.monotonic() + 600
    while not (training / "metrics.csv").exists() or len((training / "metrics.csv").read_text().splitlines()) < 20:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    assert list((training / "checkpoints").glob("*.safetensors")), "the interrupted training was not saved"
    call(*words, "--minutes", "0.05", cwd=tmp_path)  # goes on, and ends whole within its time, saying that it is not complete
    folder = tmp_path / "runs" / PAPER / RUN
    assert read_results(folder / "results.json")["figures"] and not json.loads((folder / "provenance.json").read_text())["complete"]
