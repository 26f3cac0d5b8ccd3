"""What a notebook tells badly: trainings that are killed, interrupted, damaged, and shared between processes."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsyn.training import checkpoints, load_checkpoint, read_metrics

SCRIPT = Path(__file__).with_name("killable.py")


def command(folder, *more): return [sys.executable, SCRIPT, folder, *more]


def train(folder, *more):
    done = subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def state(folder): return load_checkpoint(folder / "checkpoints")


def seen(folder):
    names = [int(path.stem.split("-")[0]) for path in checkpoints(folder / "checkpoints")]
    return names[-1] if names else 0


def wait_until(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended before it could be stopped"
        assert time.monotonic() < end, "the training did not get far enough"
        time.sleep(0.01)


def equal_to_the_bit(one, two):
    (a, meta_a), (b, meta_b) = state(one), state(two)
    assert a.keys() == b.keys() and meta_a["n_images"] == meta_b["n_images"]
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training as it goes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_the_state_holds_everything(whole):
    tensors, meta = state(whole)
    kinds = {name.split("/")[0] for name in tensors}
    assert kinds == {"module", "ema", "optimiser"} and meta["n_images"] == 2048
    assert len(read_metrics(whole)["one"][0]) == 22  # a tick is 96 images, and the end counts


def test_killed_three_times_ends_bit_equal(whole, tmp_path):
    for moment in (100, 700, 1500):
        process = subprocess.Popen(command(tmp_path, "0.02"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda moment=moment: seen(tmp_path) > moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert moment < seen(tmp_path) < 2048
    train(tmp_path)
    equal_to_the_bit(whole, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(whole, tmp_path, number):
    process = subprocess.Popen(command(tmp_path, "0.02"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: seen(tmp_path) > 300, process)
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0 and "the same command goes on from here" in said
    assert f"stopped after {seen(tmp_path)} of 2048 images" in said
    train(tmp_path)
    equal_to_the_bit(whole, tmp_path)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    process = subprocess.Popen(command(tmp_path, "0.02"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: seen(tmp_path) > 300, process)
    process.kill()
    process.wait()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert f"{newest.name} is damaged" in train(tmp_path)
    equal_to_the_bit(whole, tmp_path)


def test_two_processes_give_what_one_gives(tmp_path):
    """Equal but for the order in which gradients are added: to 1e-5 of weights of order 0.1."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, "0", "--no-dropout")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
              "--rdzv_endpoint", "localhost:0", *command(two, "0", "--no-dropout")[1:]]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (a, _), (b, meta) = state(one), state(two)
    assert meta["n_images"] == 2048 and a.keys() == b.keys()
    assert max((a[name] - b[name]).abs().max().item() for name in a if name.startswith(("module", "ema"))) < 1e-5
    losses = [read_metrics(folder)["one"][1] for folder in (one, two)]
    assert abs(losses[0] - losses[1]).max() < 1e-5
    speeds = [json.loads(line) for line in (two / "speed.jsonl").read_text().splitlines()]
    assert speeds[-1]["n_images"] == 2048
