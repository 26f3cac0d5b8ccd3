# settings.ini is the one source of metadata; this file hands it to setuptools.
from configparser import ConfigParser
from pathlib import Path

import setuptools

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
c = config["DEFAULT"]

setuptools.setup(
    name=c["lib_name"], version=c["version"], description=c["description"], license=c["license"],
    author=c["author"], author_email=c["author_email"], keywords=c["keywords"],
    # The manifests and the reproduce notebooks live at the top of the repository and travel inside the wheel.
    packages=[*setuptools.find_packages(include=[c["lib_path"], c["lib_path"] + ".*"]), "medsyn.data_manifests", "medsyn.notebooks"],
    package_dir={"medsyn": "medsyn", "medsyn.data_manifests": "data_manifests", "medsyn.notebooks": "nbs/papers"},
    package_data={"medsyn.data_manifests": ["*.yaml"], "medsyn.notebooks": ["*/reproduce.ipynb"]},
    install_requires=c["requirements"].split(),
    extras_require={"dev": c["dev_requirements"].split()},
    python_requires=">=" + c["min_python"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    entry_points={"nbdev": [f"{c['lib_path']}={c['lib_path']}._modidx:d"], "console_scripts": [c["console_scripts"]]},
)
