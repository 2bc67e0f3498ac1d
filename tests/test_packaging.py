"""What is installed: every package listed, one top-level name, one version."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import wsiseg

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders(top: Path) -> set[Path]:
    return {path.parent.relative_to(ROOT) for path in top.rglob("__init__.py")}


def test_every_folder_of_code_is_a_listed_package() -> None:
    # setuptools cannot find packages through a package-dir mapping: the list is kept by hand, checked here.
    inside = {".".join(folder.parts) for folder in folders(ROOT / "wsiseg")}
    mapped = {"wsiseg." + ".".join(f.parts) for top in ("cli", "training") for f in folders(ROOT / top)}
    assert set(SETUP["packages"]) == inside | mapped


def test_cli_and_training_are_mapped_to_their_folders() -> None:
    for package in SETUP["packages"]:
        top, _, rest = package.partition(".")
        if rest.split(".")[0] in ("cli", "training"):
            assert SETUP["package-dir"][package] == rest.replace(".", "/")
        else:
            assert top == "wsiseg"


def test_nothing_but_wsiseg_is_importable_after_installation() -> None:
    names = {name for name, owners in packages_distributions().items() if "wsiseg" in owners}
    assert {name for name in names if not name.startswith("__editable__")} == {"wsiseg"}


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wsiseg.__version__ == project["version"] == version("wsiseg")
    assert f"## [{wsiseg.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_notebook_completes_what_is_loaded_when_first_used() -> None:
    assert set(wsiseg.__all__) <= set(dir(wsiseg))
    assert all(getattr(wsiseg, name) for name in wsiseg.__all__)
