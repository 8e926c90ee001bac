"""An issuer that is asked by HTTP: where its keys are, which they are now, and what it cannot make us do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from bentos.kit.access import issuer as issuer_module
from bentos.kit.access.settings import TokenRules
from bentos.kit.access.tokens import Tokens
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

FIRST = RSAKey.generate_key(2048, {"kid": "first"}, private=True)
SECOND = RSAKey.generate_key(2048, {"kid": "second"}, private=True)
CONFIGURATION = "/.well-known/openid-configuration"


@dataclass
class Issuer:
    """What each path answers: JSON, or a function that answers by itself."""

    port: int
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, *keys: RSAKey) -> None:
        self.answers["/keys"] = KeySet(list(keys)).as_dict(private=False)

    def token(self, key: RSAKey = FIRST) -> str:
        claims = {"iss": self.url, "aud": "darkroom", "sub": "anna", "exp": int(time.time()) + 9999}
        return str(jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key, algorithms=["RS256"]))

    def tokens(self, keys: str = "", clock: Callable[[], float] = time.time) -> Tokens:
        return Tokens(TokenRules(issuer=self.url, audience="darkroom", keys=keys), clock)

    def find(self, keys: str = "") -> Credential | None:
        return asyncio.run(self.tokens(keys).find(self.token()))


@contextmanager
def _issuing() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            answer = issuer.answers.get(self.path)
            if callable(answer):
                answer(self)
                return
            body = json.dumps(answer).encode()
            self.send_response(200 if answer is not None else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    issuer = Issuer(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.socket.close()
        thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with _issuing() as found:
        found.answers[CONFIGURATION] = {"issuer": found.url, "jwks_uri": f"{found.url}/keys"}
        found.publish(FIRST)
        yield found


def test_keys_are_where_the_configuration_says(issuer: Issuer) -> None:
    found = issuer.find()
    assert found is not None
    assert found.id == "jwt:anna"
    assert issuer.asked == [CONFIGURATION, "/keys"]


def test_keys_are_where_the_settings_say(issuer: Issuer) -> None:
    del issuer.answers[CONFIGURATION]
    assert issuer.find(f"{issuer.url}/keys") is not None


def test_a_new_key_is_read_and_an_old_one_ends(issuer: Issuer) -> None:
    now = time.time()

    async def work() -> None:
        nonlocal now
        tokens = issuer.tokens(clock=lambda: now)
        assert await tokens.find(issuer.token()) is not None
        issuer.publish(SECOND)
        now += 11
        assert await tokens.find(issuer.token(SECOND)) is not None
        now += 61
        assert await tokens.find(issuer.token()) is None

    asyncio.run(work())


def refused(issuer: Issuer, keys: str = "") -> bool:
    with pytest.raises(RequestRefused) as caught:
        issuer.find(keys)
    return (caught.value.status, caught.value.reason) == (503, "keys_unavailable")


def redirecting(place: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", place)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


def test_a_redirection_leads_nowhere(issuer: Issuer) -> None:
    """Not even within the issuer: who moves its keys says so in the configuration."""
    with _issuing() as other:
        other.answers |= {"/keys": issuer.answers["/keys"], CONFIGURATION: issuer.answers[CONFIGURATION]}
        for path in (CONFIGURATION, "/keys"):
            kept, issuer.answers[path] = issuer.answers[path], redirecting(f"{other.url}{path}")
            assert refused(issuer)
            issuer.answers[path] = kept
        issuer.answers["/moved"] = redirecting(f"{other.url}/keys")
        assert refused(issuer, f"{issuer.url}/moved")
        assert other.asked == []


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file:{path}", "ftp://127.0.0.1{path}", "data:,{path}"])
def test_a_configuration_leads_to_no_file(issuer: Issuer, tmp_path: Path, form: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(issuer.answers["/keys"]))
    issuer.answers[CONFIGURATION]["jwks_uri"] = form.format(path=path)
    assert refused(issuer)


def test_a_secure_issuer_leads_to_no_plain_address() -> None:
    with pytest.raises(ValueError, match="https"):
        issuer_module.keys_address(
            "https://issuer.example", {"issuer": "https://issuer.example", "jwks_uri": "http://127.0.0.1:1/keys"}
        )


def test_a_configuration_of_another_issuer_is_none(issuer: Issuer) -> None:
    issuer.answers[CONFIGURATION]["issuer"] = "https://another.example"
    assert refused(issuer)


@pytest.mark.parametrize("answer", [[], {}, {"keys": 5}, {"keys": [5]}, "x", {"keys": [{"kty": "RSA"}]}, {"keys": []}])
def test_junk_is_no_key(issuer: Issuer, answer: object) -> None:
    issuer.answers["/keys"] = answer
    with contextlib.suppress(RequestRefused):
        assert issuer.find() is None


def endless(pause_s: float, piece: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(piece)
                time.sleep(pause_s)
        except OSError:
            pass

    return answer


@pytest.mark.parametrize("path", [CONFIGURATION, "/keys"])
def test_an_answer_without_end_ends(issuer: Issuer, path: str) -> None:
    issuer.answers[path] = endless(0, b"[" * 65_536)
    assert refused(issuer)


def test_an_answer_that_drips_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who shows a token of a known key does not wait at all, and others not for long."""
    monkeypatch.setattr(issuer_module, "FETCH_TIMEOUT_S", 2.0)
    now = time.time()

    async def work() -> None:
        nonlocal now
        tokens = issuer.tokens(clock=lambda: now)
        assert await tokens.find(issuer.token()) is not None
        issuer.answers["/keys"] = endless(0.1, b" ")
        now += 301
        began = time.monotonic()
        assert await tokens.find(issuer.token()) is not None
        assert time.monotonic() - began < 1.5
        assert await tokens.find(issuer.token(SECOND)) is None
        assert time.monotonic() - began < 10

    asyncio.run(work())
