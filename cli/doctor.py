"""`wsiseg doctor`: what is installed here, what works, what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

import click

from wsiseg import __version__

PACKAGES = ("numpy", "torch", "transformers", "peft", "zarr", "shapely", "tifffile", "imagecodecs")
EXTRAS = {
    "highdicom": "formats",
    "pyarrow": "formats",
    "zarrs": "fast",
    "starlette": "view",
    "uvicorn": "view",
    "tensorboard": "train",
    "yaml": "train",
    "aiohttp": "url",
    "geopandas": "geopandas",
    "distributed": "cluster",
    "bitsandbytes": "quantised",
    "httpx": "annotate",
    "wandb": "wandb",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `needed` findings that are not `ok` stop the main job."""

    name: str
    ok: bool
    detail: str
    needed: bool = True


def look(name: str, check: Callable[[], str], *, needed: bool = True) -> Finding:
    """Run one check; whatever it raises becomes its line, since a broken installation raises anything."""
    try:
        return Finding(name, True, check(), needed)
    except Exception as error:
        return Finding(name, False, " ".join(f"{type(error).__name__}: {error}".split())[:300], needed)


def openslide() -> str:
    import openslide

    return f"openslide-python {version('openslide-python')}, library {openslide.__library_version__}"


def tiffslide() -> str:
    import tiffslide

    return f"tiffslide {tiffslide.__version__}"


def devices() -> str:
    import torch

    from wsiseg.inference.devices import cpu_threads

    names = [f"cpu ({os.cpu_count()} cores, {cpu_threads()} threads)"]
    names += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        names.append(f"no GPU for torch {torch.__version__}, though NVIDIA's driver is here: see pytorch.org")
    return ", ".join(names)


def torchvision() -> str:
    """wsiseg needs none, but transformers imports one that is there, and stumbles over a wrong one."""
    if find_spec("torchvision") is None:
        return "not installed (not needed)"
    try:
        import torchvision
    except Exception as error:
        if "torchvision::nms" not in str(error):
            raise
        raise RuntimeError(
            f"torchvision {version('torchvision')} was built for another torch than {version('torch')} "
            f"({error}): `pip uninstall torchvision`, or install the one that belongs to this torch"
        ) from error
    return f"torchvision {torchvision.__version__}"


def bundled_model() -> str:
    from wsiseg.model import load_model

    model = load_model()
    return f"{model.name} {model.fingerprint[:12]}"


def extra(module: str, name: str) -> Finding:
    missing = f'not installed: `pip install "wsiseg[{name}]"`'
    return Finding(
        module, find_spec(module) is not None, "installed" if find_spec(module) else missing, False
    )


def packages() -> str:
    """Versions of the most important ones. RuntimeError: one is missing, or of a version that wsiseg cannot use."""
    from packaging.requirements import Requirement

    for needed in map(Requirement, requires("wsiseg") or ()):
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            raise RuntimeError(f'{needed.name} is not installed: `pip install "{needed}"`') from None
        if not needed.specifier.contains(found, prereleases=True):
            raise RuntimeError(f'{needed.name} {found} is here, and wsiseg needs another: `pip install "{needed}"`')
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def examine() -> list[Finding]:
    return [
        look("packages", packages),
        look("openslide", openslide),
        look("tiffslide", tiffslide, needed=False),
        look("devices", devices),
        look("torchvision", torchvision),
        look("bundled model", bundled_model),
        *(extra(module, name) for module, name in EXTRAS.items()),
    ]


@click.command("doctor", short_help="Show versions, devices and what is missing.")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show versions, devices, backends, and what is missing; exit 0 if `wsiseg segment` can run here."""
    free_gb = shutil.disk_usage(".").free / 1e9
    click.echo(f"wsiseg {__version__}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"{free_gb:.0f} GB free in {os.getcwd()}")
    findings = examine()
    for finding in findings:
        state = "ok" if finding.ok else ("BROKEN" if finding.needed else "-")
        click.echo(f"{state:7}{finding.name:15}{finding.detail}")
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    if broken:
        click.echo(f"wsiseg: `wsiseg segment` cannot run here: {', '.join(broken)}", err=True)
        ctx.exit(1)
    click.echo("`wsiseg segment` can run here.")
