"""Where a slide lies: local paths, URLs, and a fingerprint of the content that does not depend on either."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from wsiseg.errors import SlideError

_HASH_WHOLE_BYTES = 16 << 20  # files up to this size are hashed whole
_SAMPLES = 64
_SAMPLE_BYTES = 16 << 10


def is_url(source: str) -> bool:
    """Whether `source` is for fsspec (s3://…, simplecache::https://…) and no local path."""
    return ("://" in source or "::" in source) and not os.path.exists(source)


def as_source(source: str | os.PathLike[str]) -> str:
    """The source as text, file:// URLs as the local path that they are, ~ expanded."""
    text = os.fspath(source)
    if text.startswith("file://"):
        return unquote(urlsplit(text).path)
    return text if is_url(text) else os.path.expanduser(text)


def open_binary(source: str) -> IO[bytes]:
    """Open a path or URL for reading.

    Raises:
        SlideError: nothing there, a directory, an empty file, no permission, or a URL whose scheme needs a
            package that is not installed.
    """
    try:
        if is_url(source):
            from wsiseg.slide.remote import RemoteFile

            file: IO[bytes] = RemoteFile(source)  # type: ignore[assignment]
        else:
            if Path(source).is_dir():
                if (Path(source) / "zarr.json").is_file():
                    raise SlideError(f"{source} is a Zarr store: give the slide that it was made of")
                raise SlideError(
                    f"{source} is a directory: give one slide file "
                    "(any .dcm of a DICOM series, the .mrxs of a MIRAX slide)"
                )
            file = open(source, "rb")  # noqa: SIM115 (the caller closes it)
        if file.seek(0, os.SEEK_END) == 0:
            file.close()
            raise SlideError(f"{source} is empty (0 bytes): copy or download the slide again")
        file.seek(0)
        return file
    except FileNotFoundError as error:
        raise SlideError(f"{source} does not exist") from error
    except ImportError as error:
        raise SlideError(f"cannot read {source}: {error}") from error
    except SlideError:
        raise
    except (OSError, ValueError) as error:
        raise SlideError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
    except Exception as error:  # network clients raise errors of their own kinds
        raise SlideError(f"cannot read {source}: {type(error).__name__}: {error}") from error


def head(source: str, size: int = 64) -> bytes:
    """The first bytes. Raises SlideError as `open_binary`."""
    with open_binary(source) as file:
        return file.read(size)


def fingerprint(source: str, extra: str = "") -> str:
    """Hex SHA-256 of a slide's content, cheap for any size.

    Files up to 16 MiB are hashed whole. Of larger ones the size, the first and last bytes and 62 evenly
    spread samples are hashed: 1 MiB in all, over the network too. extra: what else tells slides apart that
    spread over several files (OpenSlide's quickhash).
    """
    with open_binary(source) as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(f"wsiseg-slide-1:{size}:{extra}:".encode())
        if size <= _HASH_WHOLE_BYTES:
            file.seek(0)
            digest.update(file.read())
        else:
            for i in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
