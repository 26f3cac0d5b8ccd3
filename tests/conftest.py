"""One environment for every test and every process a test starts: a fresh cache, few threads, no display."""
import os
import signal
import tempfile
from pathlib import Path

import pytest

SCRATCH = tempfile.TemporaryDirectory(prefix="medsyn-tests-")  # removed when the session ends
os.environ["MEDSYN_CACHE"] = str(Path(SCRATCH.name) / "cache")
os.environ["IPYTHONDIR"] = str(Path(SCRATCH.name) / "ipython")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait do not spin: busy machines stay usable
os.environ.setdefault("MPLBACKEND", "agg")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us deaf to it, and our children inherit that


@pytest.fixture(scope="session")
def repository():
    """The folder that holds settings.ini."""
    return Path(__file__).resolve().parents[1]
