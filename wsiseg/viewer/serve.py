"""Serve a page on this machine alone until it is interrupted."""

from __future__ import annotations

import logging
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

from wsiseg.errors import ViewerError


def serve(
    session: object,
    *,
    app: str = "wsiseg.viewer.app",
    port: int = 0,
    browse: bool = True,
    tell: Callable[[str], None] = print,
) -> None:
    """Bind 127.0.0.1 (a free port if `port` is 0), tell the address, and answer until Ctrl-C or SIGTERM.

    app: the module whose `make_app(session, token=…, port=…)` answers; imported here, as it needs the extra `view`.

    Raises:
        ViewerError: the port is taken, or Starlette and uvicorn are not installed.
    """
    try:
        import uvicorn

        make_app = import_module(app).make_app
    except ImportError as error:
        raise ViewerError(f'the page needs {error.name}: `pip install "wsiseg[view]"`') from error
    try:
        bound = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise ViewerError(f"cannot listen on 127.0.0.1:{port}: {error}; choose another --port") from error
    with bound:
        port, token = bound.getsockname()[1], secrets.token_urlsafe(24)
        address = f"http://127.0.0.1:{port}/{token}/"
        config = uvicorn.Config(
            make_app(session, token=token, port=port),
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,  # a stream of events must not keep it alive
        )
        tell(address)
        led: AbstractContextManager[Path | None] = leading_to(address) if browse else nullcontext()
        with led as file:
            if file is not None:
                threading.Thread(target=webbrowser.open, args=(file.as_uri(),), daemon=True).start()
            server = uvicorn.Server(config)
            with _silent_while(lambda: server.should_exit):
                server.run(sockets=[bound])


@contextmanager
def _silent_while(ending: Callable[[], bool]) -> Iterator[None]:
    """uvicorn would show the traceback of every request that the end cuts off, such as a tile from a slow disk."""

    def heard(_: logging.LogRecord) -> bool:
        return not ending()

    log = logging.getLogger("uvicorn.error")
    log.addFilter(heard)
    try:
        yield
    finally:
        log.removeFilter(heard)


@contextmanager
def leading_to(address: str) -> Iterator[Path | None]:
    """A file that only this user may read and that leads a browser to `address`; None if it cannot be written.

    What a browser is started with, every user of the machine can read (`ps`), and the address holds the token.
    In the home folder, since browsers in a sandbox (snap, flatpak) see no other.
    """
    try:
        with tempfile.NamedTemporaryFile(  # its mode is 0600
            "w", dir=Path.home(), prefix="wsiseg-view-", suffix=".html", delete=False
        ) as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
    except (OSError, RuntimeError):
        yield None
        return
    try:
        yield Path(file.name)
    finally:
        Path(file.name).unlink(missing_ok=True)
