"""Published weights from the hub: fetched once, kept in its cache, found there again."""

from __future__ import annotations

from pathlib import Path

from wsiseg.errors import ModelError, OutputError
from wsiseg.model.published import Published, published

_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "README.md", "LICENSE*")
_SAFE = ("*.safetensors", "model.safetensors.index.json")
_PICKLE = ("pytorch_model.bin",)


def fetch(name: str) -> Path:
    """Download `name` or `name@revision` (commit, tag or branch; without one the newest) and return its folder.

    A connection that breaks is taken up where it broke; after a kill, the files that had arrived whole are kept, and
    the one under way begins again (huggingface_hub 2.4). With HF_HUB_OFFLINE=1 nothing is asked of the network.
    The last part of the folder is the commit: `name@commit` will always mean the same weights.

    Raises:
        ModelError: unknown name, gated repository, no such revision, hub not reachable.
        OutputError: the disk of the cache is full.
    """
    entry, revision = _entry(name)
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.utils import logging

    if is_offline_mode():
        return downloaded(name)
    logging.set_verbosity_error()  # what goes wrong is said once, by us
    try:
        # Asked once: where nothing answers, the listing of files would be tried for 24 s (huggingface_hub 2.4).
        listed = model_info(entry.repository, revision=revision).siblings or []
        # Some repositories hold the same weights twice; the pickle is fetched only where there is nothing else.
        weights = _SAFE if any(file.rfilename.endswith(".safetensors") for file in listed) else _PICKLE
        return Path(snapshot_download(entry.repository, revision=revision, allow_patterns=[*_FILES, *weights]))
    except Exception as error:
        raise _explained(error, entry, revision) from error


def downloaded(name: str) -> Path:
    """The folder of an earlier `fetch`. Raises ModelError: there was none, or it did not finish."""
    entry, revision = _entry(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for weights in (_SAFE, _PICKLE):  # as `fetch` asked for them: a snapshot of other files would count as incomplete
        patterns = [*_FILES, *weights]
        try:
            folder = Path(
                snapshot_download(entry.repository, revision=revision, allow_patterns=patterns, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            continue
        if any(next(folder.glob(pattern), None) for pattern in weights):
            return folder
    raise ModelError(f"{name} is not on this machine yet, or not whole; run `wsiseg models fetch {name}`")


def _entry(name: str) -> tuple[Published, str | None]:
    plain, _, revision = name.partition("@")
    return published(plain), revision or None


def _explained(error: Exception, entry: Published, revision: str | None) -> ModelError | OutputError:
    """One sentence with what to do, for what goes wrong between here and the hub."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{entry.repository}"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{entry.name} is gated ({entry.licence}): accept its terms on {page}, make a token at "
            "https://huggingface.co/settings/tokens, run `hf auth login`, and fetch again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{entry.repository} has no revision {revision!r}; {page}/commits/main lists them")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"{page} is not there for you: gone, renamed, or private; if private, run `hf auth login`")
    if isinstance(error, OSError) and error.errno == 28:
        return OutputError(f"no space left for {entry.name}; set HF_HOME to a larger disk and fetch again")
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return ModelError(f"cannot fetch {entry.repository} ({reason}); whole files are kept, fetch again for the rest")
