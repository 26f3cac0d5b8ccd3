"""Every chapter is a test: nbdev runs it in a process of its own, in the notebook's folder."""
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# The reproduce notebooks are run by papermill, through the runner that users call: see test_runner.py.
CHAPTERS = sorted(path for path in (REPOSITORY / "nbs").rglob("*.ipynb")
                  if path.name != "reproduce.ipynb" and ".ipynb_checkpoints" not in path.parts)
RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
settings = get_config()
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=settings.tst_flags.split(), basepath=settings.config_path)
sys.exit(not passed)
"""


def test_there_are_chapters():
    assert len(CHAPTERS) > 1


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.relative_to(REPOSITORY / "nbs").with_suffix("").as_posix())
def test_chapter(chapter):
    done = subprocess.run([sys.executable, "-c", RUN, chapter], cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
