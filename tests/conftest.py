"""One environment for every test and every process a test starts: a fresh cache, few threads, no display."""
import os
import signal
import tempfile
from pathlib import Path

import pytest

SCRATCH = tempfile.TemporaryDirectory(prefix="medsyn-tests-")  # removed when the session ends
os.environ["MEDSYN_CACHE"] = str(Path(SCRATCH.name) / "cache")
os.environ["IPYTHONDIR"] = str(Path(SCRATCH.name) / "ipython")
threads = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)  # two tests side by side take one each
os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not spin: busy machines stay usable
os.environ.setdefault("MPLBACKEND", "agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us deaf to it, and our children inherit that


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests of one file stay together, because they share what they made; chapters are dealt out one by one."""
    for item in items:
        if item.path.stem != "test_notebooks": item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def repository():
    """The folder that holds settings.ini."""
    return Path(__file__).resolve().parents[1]
