"""The client of /v1/chat/completions against a server on this machine: patient, bounded, and silent about its key."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from PIL import Image

from tests.training.chat_server import Answer, Script, Seen, chat_server
from wsiseg.errors import EndpointError
from wsiseg.training.annotate import endpoint as endpoint_module
from wsiseg.training.annotate.endpoint import Endpoint
from wsiseg.training.annotate.limits import Pace
from wsiseg.training.annotate.replies import Reply
from wsiseg.training.annotate.request import Picture, RefusedError, Request

KEY = "sk-secret-0123"
HELLO = Request("seer", "be brief", ("hello",))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)


def ask(script: Script, *requests: Request, per_minute: float | None = None, timeout_s: float = 60) -> list[Reply]:
    """Ask a server with that script, all requests at once."""

    async def go(url: str) -> list[Reply]:
        endpoint = Endpoint(url, KEY, Pace(per_minute), timeout_s=timeout_s, answer_tokens=99)
        try:
            return await asyncio.gather(*(endpoint.ask(request) for request in requests))
        finally:
            await endpoint.close()

    with chat_server(script) as server:
        try:
            return asyncio.run(go(server.url))
        finally:
            SEEN[:] = server.seen


SEEN: list = []


def test_what_is_sent_and_what_comes_back() -> None:
    image = np.full((100, 60, 3), (225, 170, 200), np.uint8)
    mask = np.zeros((100, 60), np.uint16)
    mask[20:40, 10:30], mask[20:40, 30:50] = 1, 2
    request = Request("seer", "be brief", ("what is it?",), Picture(image, mask))
    (reply,) = ask(lambda seen, n: Answer("Two glands."), request)
    assert (reply.text, reply.tokens_in, reply.tokens_out) == ("Two glands.", 1000, 50)
    sent = SEEN[0]
    assert sent.authorization == f"Bearer {KEY}"
    assert sent.body["model"] == "seer"
    assert sent.body["max_tokens"] == 99
    system, user = sent.body["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][0] == {"type": "text", "text": "what is it?"}
    head, data = user["content"][1]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert picture.shape == (400, 240, 3)  # four times as large, not more
    green = (picture[..., 1] > 200) & (picture[..., 0] < 100)
    assert green[100, 38]  # two pixels outside the first gland's left edge
    assert green[100, 118]  # between the two, which touch
    assert not green[120, 60]  # inside
    assert not green[10].any()


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=429, headers={"Retry-After": "0"}, raw=b"{}"),
        Answer(status=429, raw=b'{"error": {"message": "slow down"}}'),
        Answer(status=500, raw=b"<html>oops"),
        Answer(status=503, headers={"Retry-After": "soon"}, raw=b""),
        Answer(status=503, headers={"Retry-After": "Mon, 01 Jan 2026 00:00:00 +99999999999999999"}, raw=b""),
        Answer(raw=b'{"choices": [{"message": {"cont'),
        Answer(raw=b'{"choices": []}'),
        Answer(raw=b"[" * 100_000),
        Answer(raw=b"\xff\xfe"),
    ],
    ids=[
        "429 with a time",
        "429",
        "500",
        "503",
        "503 with a time of nowhere",
        "half a JSON",
        "no choice",
        "nested without end",
        "no UTF-8",
    ],
)
def test_trouble_that_may_pass_is_tried_again(trouble: Answer) -> None:
    (reply,) = ask(lambda seen, n: trouble if n < 2 else Answer("At last."), HELLO)
    assert reply.text == "At last."
    assert len(SEEN) == 3


def test_a_model_that_wants_the_limit_under_its_other_name_gets_it() -> None:
    wants = Answer(status=400, raw=b'{"error": {"message": "Unsupported parameter: use \'max_completion_tokens\'"}}')
    ask(lambda seen, n: Answer("Yes.") if "max_completion_tokens" in seen.body else wants, HELLO, HELLO)
    assert "max_tokens" not in SEEN[-1].body
    assert SEEN[-1].body["max_completion_tokens"] == 99


def test_a_slow_answer_is_given_up_and_asked_for_again() -> None:
    (reply,) = ask(lambda seen, n: Answer("Here.", delay_s=0 if n else 30), HELLO, timeout_s=2)
    assert reply.text == "Here."


def test_what_never_works_ends_after_six_tries() -> None:
    with pytest.raises(RefusedError, match=r"failed 6 times, at last: 502 Bad Gateway"):
        ask(lambda seen, n: Answer(status=502), HELLO)
    assert len(SEEN) == 6


def test_a_server_that_names_a_time_is_left_alone_until_then_by_all() -> None:
    def busy_once(seen: Seen, n: int) -> Answer:
        until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # in whole seconds
        return Answer("Yes.") if n else Answer(status=429, headers={"Retry-After": until}, raw=b"{}")

    ask(busy_once, HELLO, *[HELLO] * 2, per_minute=6000)
    late = [seen.at - SEEN[0].at for seen in SEEN]
    assert late[-1] > 0.5
    with pytest.raises(EndpointError, match="asks to come back in 3600 s"):
        ask(lambda seen, n: Answer(status=429, headers={"Retry-After": "3600"}), HELLO)


def test_requests_follow_at_the_pace_that_was_asked_for() -> None:
    began = time.monotonic()
    ask(lambda seen, n: Answer("Yes."), *[HELLO] * 6, per_minute=600)
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (Answer(status=401, raw=b"no such key: " + KEY.encode()), EndpointError, "401 Unauthorized: no such key: "),
        (
            Answer(status=404, raw=b'{"error": {"message": "no model"}}'),
            EndpointError,
            "'seer': 404 Not Found: no model",
        ),
        (Answer(status=307, headers={"Location": "http://elsewhere/"}), EndpointError, "307"),
        (Answer(status=429, raw=b'{"error": {"code": "insufficient_quota"}}'), EndpointError, "insufficient_quota"),
        (Answer(status=400, raw=b'{"error": {"message": "too\\nlarge \\u202e"}}'), RefusedError, "Request: too large$"),
        (Answer(raw=b"x" * 2_100_000), RefusedError, "more than"),
    ],
    ids=["key", "model", "redirect", "quota", "refused", "flood"],
)
def test_what_will_not_pass_is_one_sentence_without_the_key(
    answer: Answer, error: type[Exception], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(error, match=says) as raised:
        ask(lambda seen, n: answer, HELLO)
    assert type(raised.value) is error
    assert len(SEEN) == 1
    assert KEY not in str(raised.value) + caplog.text


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://me:pw@host/v1", "http://host/v1?key=1", "http://[::1"]
)
def test_addresses_that_cannot_be_or_hold_secrets_are_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="--endpoint"):
        Endpoint(url, None, Pace(None), timeout_s=1, answer_tokens=1)


def test_no_server_is_said() -> None:
    async def go() -> None:
        endpoint = Endpoint("http://127.0.0.1:9/v1", None, Pace(None), timeout_s=1, answer_tokens=1)
        await endpoint.ask(HELLO)

    with pytest.raises(RefusedError, match="ConnectError"):
        asyncio.run(go())
