"""The house is in order: what is generated agrees with its notebook, what is written down agrees with what is there.

Nothing here asks git, so uncommitted work is checked as it lies; every check names the files it is unhappy with.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from medsyn.cli import papers_table

REPOSITORY = Path(__file__).resolve().parents[1]
SKIPPED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")
MACHINE_PATH = re.compile(r"(?<![\w.:/~])/(?:home|root|work|tmp|opt|mnt|Users|usr/local/lib)/[\w.-]+")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)")


def test_tests_of_one_file_stay_on_one_worker(request):
    """Else every paper would run once a worker: pytest-xdist 3.8 does not group under pytest 9.2."""
    if "PYTEST_XDIST_WORKER" not in os.environ: pytest.skip("no workers: run as `make test` does")
    assert request.node.nodeid.endswith("@test_house")


def command(name):
    """The path of a program that was installed with the tests."""
    return str(Path(sys.executable).with_name(name))


def run(*words, cwd=REPOSITORY):
    done = subprocess.run(list(map(str, words)), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(REPOSITORY / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def files(folder, pattern):
    """Relative path -> content, without caches."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob(pattern))
            if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)}


NOTEBOOKS = {name: json.loads(text) for name, text in files(REPOSITORY / "nbs", "*.ipynb").items()}
CHAPTERS = {name: book for name, book in NOTEBOOKS.items() if not name.endswith("reproduce.ipynb")}
REPRODUCE = {name: book for name, book in NOTEBOOKS.items() if name.endswith("reproduce.ipynb")}


def code(book):
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def exported_to(book):
    return [name for text in code(book) for name in re.findall(r"^#\| ?default_exp (\S+)", text, re.M)]


# --- generated files agree with the notebooks ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    """A copy of the repository whose modules were made anew and whose notebooks were cleaned."""
    copy = tmp_path_factory.mktemp("regenerated") / "medsyn"
    shutil.copytree(REPOSITORY / "nbs", copy / "nbs", ignore=SKIPPED)
    (copy / "medsyn").mkdir()
    shutil.copy(REPOSITORY / "medsyn" / "__init__.py", copy / "medsyn")
    shutil.copy(REPOSITORY / "settings.ini", copy)
    run(command("nbdev_export"), cwd=copy)
    run(command("nbdev_clean"), cwd=copy)
    return copy


def test_no_module_without_a_notebook(regenerated):
    stale = files(REPOSITORY / "medsyn", "*").keys() - files(regenerated / "medsyn", "*").keys()
    assert not stale, f"in medsyn/ but exported by no notebook (delete them): {sorted(stale)}"


def test_modules_are_what_the_notebooks_export(regenerated):
    found, expected = files(REPOSITORY / "medsyn", "*"), files(regenerated / "medsyn", "*")
    differ = [name for name in expected if found.get(name) != expected[name]]
    assert not differ, f"out of step with their notebook (`make sync`, and edit the notebook, not the module): {differ}"


def test_notebooks_are_clean(regenerated):
    found, expected = files(REPOSITORY / "nbs", "*.ipynb"), files(regenerated / "nbs", "*.ipynb")
    differ = [name for name in expected if found[name] != expected[name]]
    assert not differ, f"`make sync` would clean: {differ}"


def test_readme_is_what_the_index_says(tmp_path):
    run(sys.executable, ".ci/readme.py", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (REPOSITORY / "README.md").read_text(), "README.md is out of step: `make readme`"


def test_readme_shows_the_results_that_are_here():
    table = papers_table(REPOSITORY / "results")
    assert table in (REPOSITORY / "README.md").read_text(), "execute nbs/index.ipynb anew, then `make readme`"


# --- lint ------------------------------------------------------------------------------------------------------------

def test_ruff():
    run(sys.executable, "-m", "ruff", "check", "--output-format", "concise", "nbs", "tests", "setup.py", ".ci/readme.py")


def test_hadolint():
    run(command("hadolint"), "Dockerfile")


# --- notebooks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CHAPTERS)
def test_nbdev_reads_the_chapter_as_meant(name):
    """Each of these is otherwise passed over without a word."""
    book = CHAPTERS[name]
    assert book["metadata"].get("kernelspec", {}).get("language", "python") == "python", "another language is not run"
    for text in code(book):
        body = re.sub(r"\A(\s*#\|.*(\n|\Z))*", "", text)
        assert not re.search(r"^\s*# ?\|", body, re.M), f"a directive below the top of its cell is ignored:\n{text}"
    assert not any(cell["cell_type"] == "raw" and "skip_exec" in "".join(cell["source"]) for cell in book["cells"]), "it would not be run"
    exports = any(re.search(r"^#\| ?export", text, re.M) for text in code(book))
    assert len(exported_to(book)) == exports, "`#| export` needs one `#| default_exp`"


def test_no_two_chapters_write_the_same_module():
    targets = [target for book in CHAPTERS.values() for target in exported_to(book)]
    assert len(targets) == len(set(targets)), sorted(targets)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_fit_to_be_read(name):
    book, size = NOTEBOOKS[name], (REPOSITORY / "nbs" / name).stat().st_size
    assert size < 1_000_000, f"{size} bytes: draw smaller pictures"
    outputs = [output for cell in book["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"], "an error is stored"
    assert not MACHINE_PATH.findall(json.dumps(book["cells"])), "a path of one machine"


def test_published_results_name_no_place_on_one_machine():
    for path in sorted((REPOSITORY / "results").rglob("*")):
        if path.suffix in (".ipynb", ".json", ".jsonl", ".csv", ".md"):
            assert not MACHINE_PATH.findall(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", CHAPTERS)
def test_cells_are_short(name):
    lines = [[line for line in text.splitlines() if not line.startswith("#|")] for text in code(CHAPTERS[name])]
    longest = max(lines, key=len, default=[])
    assert len(longest) <= 40, "\n".join(longest)


@pytest.mark.parametrize("name", REPRODUCE)
def test_papermill_reads_the_reproduction_as_meant(name):
    """papermill knows no nbdev directive, and injects parameters only below the cell that is tagged."""
    cells = REPRODUCE[name]["cells"]
    assert cells[0]["cell_type"] == "raw" and "skip_exec: true" in "".join(cells[0]["source"]), "nbdev would run it as a chapter"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    directives = [text for text in code(REPRODUCE[name]) if re.search(r"^#\| ?(export|eval|slow|gpu|notest|default_exp)", text, re.M)]
    assert not directives, f"papermill would not heed these: {directives}"


# --- modules ---------------------------------------------------------------------------------------------------------

def public(module):
    """The functions and classes among the names that a module exports."""
    nodes = ast.parse(module.read_text()).body
    lists = [node.value for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    exported = ast.literal_eval(lists[0]) if lists else []
    return [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in exported]


MODULES = [path for path in sorted((REPOSITORY / "medsyn").rglob("*.py")) if not path.name.startswith("_")]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_public_names_are_explained(module):
    dumb = [node.name for node in public(module) if not ast.get_docstring(node)]
    assert not dumb, f"no docstring: {dumb}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_public_functions_are_shown_at_work(module):
    """In a cell that is not exported. Commands are shown by their command line, classes often by the function that makes them."""
    lessons = "\n".join(text for book in CHAPTERS.values() for text in code(book) if not re.match(r"#\| ?(export|default_exp)", text))
    names = [node.name for node in public(module) if isinstance(node, ast.FunctionDef) and not node.decorator_list]
    unseen = [name for name in names if not re.search(rf"\b{name}\b", lessons)]
    assert not unseen, f"no chapter shows them (show them, or name them with an underscore): {unseen}"


# --- package and metadata --------------------------------------------------------------------------------------------

def pins():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {pin.name.lower(): pin for pin in map(Requirement, (line for line in lines if line and not line.startswith("#")))}


def test_every_requirement_is_pinned():
    wanted = map(Requirement, settings()["requirements"].split() + settings()["dev_requirements"].split())
    missing = [wish.name for wish in wanted if wish.name.lower() not in pins()]
    assert not missing, f"add to constraints.txt: {missing}"


def test_the_environment_is_the_pinned_one():
    """Otherwise what passes here is not what `make` installs. Only torch may differ: a container keeps the one that fits its CUDA."""
    differ = {name: version(name) for name, pin in pins().items() if name != "torch" and not pin.specifier.contains(version(name))}
    assert not differ, f"installed, but not as in constraints.txt: {differ}"


def test_one_version():
    here = settings()["version"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    module = re.search(r'__version__ = "(.+)"', (REPOSITORY / "medsyn" / "__init__.py").read_text())
    assert (str(citation["version"]), module[1]) == (here, here)
    assert "## [Unreleased]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_wheel_holds_manifests_and_reproductions(tmp_path):
    pytest.importorskip("setuptools")
    copy = tmp_path / "medsyn"
    for folder in ("medsyn", "data_manifests", "nbs/papers"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=SKIPPED)
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, copy, cwd=tmp_path)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    modules = {f"medsyn/{name}" for name in files(REPOSITORY / "medsyn", "*.py")}
    manifests = {f"medsyn/data_manifests/{name}" for name in files(REPOSITORY / "data_manifests", "*.yaml")}
    notebooks = {f"medsyn/notebooks/{name.removeprefix('papers/')}" for name in REPRODUCE}
    missing = (modules | manifests | notebooks) - held
    assert not missing, sorted(missing)


# --- documents and workflows -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    text = (REPOSITORY / name).read_text()
    here = LINK.findall(text) + re.findall(r"/blob/main/([^)\s]+)", text)
    assert not [link for link in here if not (REPOSITORY / link).exists()]


def test_continuous_integration_calls_make():
    assert (REPOSITORY / ".ci" / "run").read_text().rstrip().endswith("exec make test")
    flows = {path.stem: yaml.safe_load(path.read_text()) for path in (REPOSITORY / ".github" / "workflows").glob("*.yaml")}
    steps = {name: [step for job in flow["jobs"].values() for step in job["steps"]] for name, flow in flows.items()}
    assert [step["run"] for step in steps["test"] if "run" in step] == ["make test"]
    assert "pull_request" not in flows["figures"][True], "a stranger's code must not reach our own machine"
    assert any(step.get("if") == "always()" for step in steps["figures"]), "failures are the runs one wants to look at"
