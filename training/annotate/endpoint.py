"""A server that speaks OpenAI's chat completions: asked politely, patiently, and never told more than the request.

Too many requests (429), trouble of the server (5xx), lost connections, silence and answers that are no JSON are tried
again, after the time that the server names (`Retry-After`) or one that doubles. The API key goes into the header of
the request and nowhere else: not into errors, not into logs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from wsiseg import __version__
from wsiseg.errors import EndpointError
from wsiseg.qupath import clean_text, without_surrogates
from wsiseg.training.annotate.limits import Pace
from wsiseg.training.annotate.replies import Reply
from wsiseg.training.annotate.request import RefusedError, Request

TRIES = 6
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 600.0
_LARGEST_REPLY = 2_000_000  # bytes
_LONGEST_TEXT = 20_000  # characters
_LIMITS = ("max_tokens", "max_completion_tokens")  # the name that all know, and the one that OpenAI's newest want
_AGAIN = {408, 409, 425, 429}
_log = logging.getLogger(__name__)


class _Trouble(Exception):
    """To be tried again, after `wait_s` if the server named a time."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.what, self.wait_s = what, wait_s


class Endpoint:
    """`url` is what stands before /chat/completions, as http://localhost:8000/v1. To be closed."""

    def __init__(self, url: str, api_key: str | None, pace: Pace, *, timeout_s: float, answer_tokens: int) -> None:
        """Raises EndpointError: the address cannot be used, or the key is none."""
        try:
            self.url = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise EndpointError(f"--endpoint {url!r} is no address: {error}") from error
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise EndpointError(f"--endpoint {url!r} must be like http://localhost:8000/v1 or https://host/v1")
        if self.url.userinfo or self.url.query:
            raise EndpointError("--endpoint must hold no password and no query; a key belongs into --api-key-env")
        self._key = (api_key or "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise EndpointError("the API key holds characters that no key has; look at the variable that holds it")
        self._pace, self._timeout_s, self._answer_tokens = pace, timeout_s, answer_tokens
        self._limit = _LIMITS[0]
        headers = {"User-Agent": f"wsiseg/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
            if self.url.scheme == "http" and not self.is_local:
                _log.warning("the API key goes to %s unencrypted: use https", self.url.host)
        self._client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(timeout_s, connect=min(30, timeout_s)))

    @property
    def is_local(self) -> bool:
        """Whether what is sent stays on this machine."""
        return self.url.host in ("localhost", "127.0.0.1", "::1")

    async def ask(self, request: Request) -> Reply:
        """The model's reply.

        Raises:
            RefusedError: the request was refused, or failed `TRIES` times.
            EndpointError: none will go through: wrong key, address or model, or no quota.
        """
        body = request.body()
        for attempt in range(TRIES):
            await self._pace.turn()
            try:
                return await self._once(request, body | {self._limit: self._answer_tokens})
            except _Trouble as trouble:
                if attempt == TRIES - 1:
                    raise RefusedError(f"{self.url.host} failed {TRIES} times, at last: {trouble.what}") from None
                wait = trouble.wait_s
                if wait is None:
                    wait = FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)
                if wait > LONGEST_WAIT_S:
                    raise EndpointError(f"{self.url.host} asks to come back in {wait:.0f} s ({trouble.what})") from None
                _log.info("%s: %s; again in %.1f s", self.url.host, trouble.what, wait)
                if trouble.wait_s is None:
                    await asyncio.sleep(wait)
                else:
                    self._pace.pause(wait)
        raise AssertionError("unreachable")

    async def _once(self, request: Request, body: dict[str, Any]) -> Reply:
        try:
            async with (
                asyncio.timeout(self._timeout_s),  # httpx's own starts anew with every byte
                self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response,
            ):
                data = b""
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > _LARGEST_REPLY:
                        raise RefusedError(f"{self.url.host} answered more than {_LARGEST_REPLY} bytes")
        except TimeoutError:
            raise _Trouble(f"no answer in {self._timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Trouble(f"{type(error).__name__}: {self._safe(str(error))}") from None
        if response.status_code == 400 and _LIMITS[1].encode() in data and _LIMITS[0] in body:
            self._limit = _LIMITS[1]
            raise _Trouble("the limit of the answer has another name here", 0.0)
        if response.status_code != 200:
            raise self._refusal(response, data, request.model)
        return self._reply(request, data)

    def _refusal(self, response: httpx.Response, data: bytes, model: str) -> Exception:
        status, said = response.status_code, self._safe(_message(data))
        what = f"{status} {response.reason_phrase}" + (f": {said}" if said else "")
        if (status in _AGAIN and "insufficient_quota" not in said) or status >= 500:
            return _Trouble(what, _seconds(response.headers.get("Retry-After")))
        if status in (401, 402, 403, 429):
            return EndpointError(f"{self.url.host} lets us not in: {what}; look at the API key (--api-key-env)")
        if status in (404, 405) or 300 <= status < 400:
            return EndpointError(f"{self.url}/chat/completions with the model {model!r}: {what}; check both")
        return RefusedError(f"{self.url.host} refuses a request: {what}")

    def _reply(self, request: Request, data: bytes) -> Reply:
        try:
            answer = json.loads(data)
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            if isinstance(text, list):
                text = " ".join(part.get("text", "") for part in text)
            text = str(text)[:_LONGEST_TEXT]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Trouble("the answer is not what /chat/completions answers") from None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Reply(
            without_surrogates(text),
            _count(usage.get("prompt_tokens"), request.expected_tokens()),
            _count(usage.get("completion_tokens"), len(text) // 4 + 1),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _safe(self, text: str) -> str:
        """Foreign text for a message: short, on one line, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(clean_text(text, 300).split())

    async def close(self) -> None:
        await self._client.aclose()


def _message(data: bytes) -> str:
    """What an error says: of OpenAI's form its message and code, else the text."""
    text = data[:10_000].decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return " ".join(str(error[name]) for name in ("code", "message") if error.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text


def _seconds(header: str | None) -> float | None:
    """`Retry-After`: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else otherwise
