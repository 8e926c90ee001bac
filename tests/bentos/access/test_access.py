"""Every route by every role, on a live process with a real key store."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import grpc
import psycopg
import pytest
from example_packages import coloured
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from key_stores import EVERYBODY, KeyStore, check_endpoint, expected, handshake, key_store
from served_bento import Served, serve
from serving_platform import ask, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bentos.classifier.http import table
from bentos.kit.access.key_store import ActiveKey, PostgresKeyStore
from bentos.kit.front import Endpoint
from pipelines.adapters import database
from pipelines.core.access import Scope, digest_of, new_key
from pipelines.core.model_package import ModelPackage
from pipelines.settings import Settings

IMAGE = coloured("red", 1)
ISSUER = "https://issuer.example"
ISSUERS = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
CALLS = {
    "/inference.GRPCInferenceService/ServerLive": Scope.PUBLIC,
    "/inference.GRPCInferenceService/ServerReady": Scope.PUBLIC,
    "/inference.GRPCInferenceService/ModelReady": Scope.READ_MODELS,
    "/inference.GRPCInferenceService/ServerMetadata": Scope.READ_MODELS,
    "/inference.GRPCInferenceService/ModelMetadata": Scope.READ_MODELS,
    "/inference.GRPCInferenceService/ModelInfer": Scope.PREDICT,
    "/inference.GRPCInferenceService/OfTomorrow": Scope.READ_MODELS,
    "/grpc.health.v1.Health/Check": Scope.PUBLIC,
    "/grpc.health.v1.Health/Watch": Scope.PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.READ_MODELS,
    "/another.Service/Call": Scope.READ_MODELS,
}


@dataclass(frozen=True, kw_only=True)
class Guarded(KeyStore):
    """A process and its key store."""

    served: Served

    def classify(self, header: Mapping[str, str]) -> int:
        return ask(self.served.port, "/v1/classify", IMAGE, dict(header))[0]


@pytest.fixture(scope="module")
def guarded(
    bento: Path, package: ModelPackage, postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    store = key_store(postgres_settings, tmp_path_factory.mktemp("secrets"))
    keys = tmp_path_factory.mktemp("issuer") / "keys.json"
    keys.write_text(json.dumps(KeySet([ISSUERS]).as_dict(private=False)))
    tokens = {"DARKROOM_JWT_ISSUER": ISSUER, "DARKROOM_JWT_AUDIENCE": "darkroom", "DARKROOM_JWT_KEYS": str(keys)}
    with serve(bento, package, **store.variables, **tokens) as served:
        yield Guarded(served=served, **vars(store))


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("endpoint", table().endpoints, ids=lambda one: f"{one.method} {one.path}")
def test_every_route_by_every_role(guarded: Guarded, endpoint: Endpoint, who: str) -> None:
    check_endpoint(guarded.served.port, endpoint, who, guarded.header(who))


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("method", CALLS)
def test_every_call_by_every_role(guarded: Guarded, method: str, who: str) -> None:
    codes = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
    wanted = expected(who, CALLS[method])
    found = call(guarded, method, guarded.header(who))
    if wanted == 200:
        assert found not in codes.values()
    else:
        assert found == codes[wanted]


def call(guarded: Guarded, method: str, header: dict[str, str], message: bytes = b"") -> grpc.StatusCode:
    """The status of a call with a message; what is wrong about the message is for whoever is let in."""
    metadata = [(name.lower(), value) for name, value in header.items()]
    with grpc.insecure_channel(f"127.0.0.1:{guarded.served.grpc_port}") as channel:
        streaming = method.endswith(("Watch", "Info"))
        try:
            if streaming:
                next(channel.stream_stream(method)(iter([message]), metadata=metadata, timeout=10))
            else:
                channel.unary_unary(method)(message, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[no-any-return]
    return grpc.StatusCode.OK


@pytest.mark.parametrize("path", ["/docs.json", "/schema.json", "/v1", "/v1/models/colours/of-tomorrow", "/healthz/x"])
def test_what_is_not_listed_is_refused(guarded: Guarded, path: str) -> None:
    assert ask(guarded.served.port, path)[0] == 401
    assert ask(guarded.served.port, path, None, guarded.header("admin"))[0] == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_probes_are_open(guarded: Guarded, path: str) -> None:
    assert ask(guarded.served.port, path)[0] == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "Bearer dk_",
        "Bearer " + "x" * 5000,
        "Bearer \xe9",
        "the-platforms-own-key",
    ],
)
def test_junk_is_nobodys_key(guarded: Guarded, value: str) -> None:
    assert guarded.classify({"Authorization": value}) == 401


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token(key: RSAKey = ISSUERS, seconds: int = 1000) -> str:
    claims = {"iss": ISSUER, "aud": "darkroom", "sub": "anna", "exp": int(time.time()) + seconds}
    claims |= {"darkroom_role": "predictor"}
    return str(jwt.encode({"alg": "RS256", "kid": "one"}, claims, key, algorithms=["RS256"]))


def by_every_transport(guarded: Guarded, header: dict[str, str]) -> tuple[int, int, grpc.StatusCode]:
    found = guarded.classify(header), handshake(guarded.served.port, "/v1/stream", header)
    return *found, call(guarded, "/inference.GRPCInferenceService/ServerMetadata", header)


def test_a_token_opens_on_every_transport(guarded: Guarded) -> None:
    assert by_every_transport(guarded, bearer(token())) == (200, 101, grpc.StatusCode.OK)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("WyJhbGciXQ.e30.eA", id='["alg"]'),
        pytest.param("ImFsZyI.e30.eA", id='"alg"'),
        pytest.param("eyJhbGciOiJub25lIn0.e30.", id="alg none"),
        pytest.param(token(seconds=-100), id="ended"),
        pytest.param(token(RSAKey.generate_key(2048, {"kid": "one"}, private=True)), id="a stranger's key"),
        pytest.param("W" * 4000 + "." + "W" * 3000 + ".e30", id="long"),
    ],
)
def test_a_bad_token_opens_on_no_transport(guarded: Guarded, bad: str) -> None:
    assert by_every_transport(guarded, bearer(bad)) == (401, 401, grpc.StatusCode.UNAUTHENTICATED)
    assert "Traceback" not in guarded.served.log.read_text()


def test_keys_of_other_installations_and_changed_ones_do_not_open(guarded: Guarded) -> None:
    key = guarded.keys["admin"]
    changed = key[:-9] + ("A" if key[-9] != "A" else "B") + key[-8:]
    for one in (new_key(), changed, key + "x", key.upper()):
        assert guarded.classify({"Authorization": f"Bearer {one}"}) == 401
    assert guarded.classify({"Authorization": f"bearer  {key} "}) == 200


def test_the_platforms_own_key_opens(guarded: Guarded) -> None:
    assert guarded.classify({"Authorization": "Bearer the-platforms-own-key"}) == 200


def test_a_revocation_acts_within_two_seconds(guarded: Guarded) -> None:
    header = guarded.make("leaving")
    with connect(f"ws://127.0.0.1:{guarded.served.port}/v1/stream", additional_headers=header) as socket:
        socket.send(IMAGE)
        socket.recv(timeout=10)
        assert guarded.classify(header) == 200
        database.revoke_key(guarded.url, "leaving", actor="test")
        began = time.monotonic()
        wait_until(lambda: guarded.classify(header) == 401, 10)
        assert time.monotonic() - began < 2
        # A stream that was open ends with the key, too.
        socket.send(IMAGE)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "unauthenticated")


def test_an_expired_key_does_not_open(guarded: Guarded) -> None:
    header = guarded.make("short")
    assert guarded.classify(header) == 200
    with psycopg.connect(guarded.url) as connection:
        connection.execute("UPDATE api_keys SET expires_at = now() WHERE name = 'short'")
    wait_until(lambda: guarded.classify(header) == 401, 5)


def test_the_store_says_when_a_key_expires_and_answers_bentos_that_do_not_ask_for_it(guarded: Guarded) -> None:
    header = guarded.make("ending", expires_at=datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
    digest = digest_of(header["Authorization"].removeprefix("Bearer "))
    url_file = Path(guarded.variables["DARKROOM_KEYS_URL_FILE"])

    async def found() -> ActiveKey | None:
        store = PostgresKeyStore(url_file)
        try:
            return await store.find(digest)
        finally:
            await store.close()

    key = asyncio.run(found())
    assert key is not None
    assert (key.credential.role, key.expires_at) == ("predictor", datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
    with psycopg.connect(url_file.read_text().strip()) as connection:
        row = connection.execute("SELECT id, role, models, per_minute, per_day FROM find_api_key(%s)", [digest])
        assert row.fetchone() == (key.credential.id, "predictor", [], None, None)


def test_limits_hold_on_every_transport(guarded: Guarded) -> None:
    header = guarded.make("limited", per_minute=60)
    statuses = [guarded.classify(header) for _ in range(12)]
    assert statuses[:10] == [200] * 10
    assert 429 in statuses
    assert handshake(guarded.served.port, "/v1/stream", header) == 429
    assert call(guarded, "/inference.GRPCInferenceService/ModelInfer", header) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ask(guarded.served.port, "/v1/models/colours", None, header)[0] == 200  # no image, no limit


def test_a_refusal_by_limit_says_when_to_come_again(guarded: Guarded) -> None:
    header = guarded.make("once", per_minute=1)
    assert guarded.classify(header) == 200
    connection = HTTPConnection("127.0.0.1", guarded.served.port, timeout=10)
    connection.request("POST", "/v1/classify", IMAGE, header)
    response = connection.getresponse()
    assert response.status == 429
    assert 50 <= int(response.headers["Retry-After"]) <= 60
    response.read()
    connection.request("GET", "/metrics", headers=guarded.header("operator"))
    metrics = connection.getresponse().read().decode()
    assert re.search(r'darkroom_limited_requests_total\{limit="rate",role="predictor"\} [1-9]', metrics)
    connection.close()


def test_a_quota_counts_images_and_outlives_a_process(guarded: Guarded) -> None:
    header = guarded.make("daily", per_day=3)
    assert [guarded.classify(header) for _ in range(5)] == [200, 200, 200, 429, 429]

    def counted() -> int:
        with psycopg.connect(guarded.url) as connection:
            row = connection.execute("SELECT sum(images) FROM usage").fetchone()
        return int(row[0] or 0) if row else 0

    wait_until(lambda: counted() == 3)


def test_serving_processes_may_look_up_keys_and_nothing_else(guarded: Guarded, postgres_settings: Settings) -> None:
    url = postgres_settings.serving_database_url + "?" + guarded.url.partition("?")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "SELECT * FROM api_keys",
            "UPDATE api_keys SET revoked_at = NULL",
            "SELECT * FROM usage",
            "SELECT * FROM history",
            "INSERT INTO models (model) VALUES ('x')",
            "CREATE TABLE mine (x int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)  # type: ignore[call-overload]


def test_no_key_is_in_a_log(guarded: Guarded) -> None:
    guarded.classify(guarded.header("admin"))
    log = guarded.served.log.read_text()
    assert "the-platforms-own-key" not in log
    assert not any(key in log for key in guarded.keys.values())


def test_what_one_asker_was_answered_is_not_kept_for_another(guarded: Guarded) -> None:
    def hits() -> float:
        request = urllib.request.Request(
            f"http://127.0.0.1:{guarded.served.port}/metrics", headers=guarded.header("operator")
        )
        with urllib.request.urlopen(request) as response:
            lines = response.read().decode().splitlines()
        start = 'darkroom_cache_lookups_total{level="memory",result="hit"'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    image = coloured("green", 977)
    anna, bert = guarded.make("anna"), guarded.make("bert")
    before = hits()
    for header in (anna, bert):
        ask(guarded.served.port, "/v1/classify", image, header)
    assert hits() == before
    ask(guarded.served.port, "/v1/classify", image, bert)
    assert hits() == before + 1
