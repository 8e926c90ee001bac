"""Tokens: what is pinned is what counts, and nothing that a token says of itself."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from bentos.kit.access.settings import TokenRules
from bentos.kit.access.tokens import MAX_BYTES, Tokens
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential
from pipelines.core.errors import UserError

ISSUER, AUDIENCE = "https://issuer.example", "darkroom"
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"}, private=True)
EC = ECKey.generate_key("P-256", {"kid": "ec-1", "use": "sig"}, private=True)
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa-1"}, private=True)


def claims(**changes: Any) -> dict[str, Any]:
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": time.time() + 100_000, "darkroom_role": "predictor"}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def b64(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(
    key: RSAKey = RSA,
    algorithm: str = "RS256",
    header: dict[str, Any] | None = None,
    payload: bytes | None = None,
    **changes: Any,
) -> str:
    """By hand: the library refuses to make most of what it must refuse to take."""
    head = b64({"alg": algorithm, "kid": key.kid, **(header or {})})
    signed_part = f"{head}.{b64(claims(**changes) if payload is None else payload)}"
    digest = {"RS256": hashes.SHA256(), "RS512": hashes.SHA512()}[algorithm]
    signature = key.private_key.sign(signed_part.encode(), padding.PKCS1v15(), digest)
    return f"{signed_part}.{b64(signature)}"


def signed_by_ec() -> str:
    return str(jwt.encode({"alg": "ES256", "kid": EC.kid}, claims(), EC, algorithms=["ES256"]))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(KeySet([RSA, EC]).as_dict(private=False)))
    return path


@pytest.fixture
def found(keys_file: Path) -> Callable[[str], Credential | None]:
    tokens = Tokens(TokenRules(issuer=ISSUER, audience=AUDIENCE, keys=str(keys_file)))
    return lambda token: asyncio.run(tokens.find(token))


@pytest.mark.parametrize("token", [signed(), signed_by_ec(), signed(aud=["other", AUDIENCE])])
def test_a_good_token_says_who_asks(found: Callable[[str], Credential | None], token: str) -> None:
    assert found(token) == Credential(id="jwt:anna", role="predictor")


def _unsigned() -> str:
    return f"{b64({'alg': 'none', 'kid': 'rsa-1'})}.{b64(claims())}."


def _hmac_with_the_public_key() -> str:
    signed_part = f"{b64({'alg': 'HS256', 'kid': 'rsa-1'})}.{b64(claims())}"
    signature = hmac.digest(RSA.as_pem(private=False), signed_part.encode(), "sha256")
    return f"{signed_part}.{b64(signature)}"


def _other_claims() -> str:
    head, _, signature = signed().split(".")
    return f"{head}.{b64(claims(sub='admin', darkroom_role='admin'))}.{signature}"


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(_unsigned(), id="alg none"),
        pytest.param(_hmac_with_the_public_key(), id="HMAC over the public key"),
        pytest.param(_other_claims(), id="claims changed"),
        pytest.param(signed(STRANGER), id="a stranger's key under our key's id"),
        pytest.param(signed(STRANGER, header={"jwk": STRANGER.as_dict(private=False)}), id="its own key in the header"),
        pytest.param(signed(STRANGER, header={"kid": "../../dev/null"}), id="a path as key id"),
        pytest.param(signed(algorithm="RS512"), id="an algorithm that is not pinned"),
        pytest.param(signed(header={"crit": ["exp"], "exp": 0}), id="a critical header that we do not know"),
        pytest.param(signed(iss="https://other.example"), id="another issuer"),
        pytest.param(signed(iss=None), id="no issuer"),
        pytest.param(signed(aud="other"), id="another audience"),
        pytest.param(signed(aud=None), id="no audience"),
        pytest.param(signed(exp=None), id="no end"),
        pytest.param(signed(exp=time.time() - 60), id="ended"),
        pytest.param(signed(exp="tomorrow"), id="an end that is no number"),
        pytest.param(signed(nbf=time.time() + 100_000), id="not begun"),
        pytest.param(signed(iat=time.time() + 100_000), id="of the future"),
        pytest.param(signed(sub=None), id="of nobody"),
        pytest.param(signed(sub=["anna"]), id="of a list"),
        pytest.param(signed(filler="x" * MAX_BYTES), id="huge"),
        pytest.param(signed() + "x", id="longer signature"),
        pytest.param(signed()[:-4], id="shorter signature"),
        pytest.param("a.b.c", id="junk"),
        pytest.param("a.b.c.d.e", id="encrypted"),
        pytest.param("..", id="empty"),
        pytest.param(f"{b64([])}.{b64([])}.{b64(b'x')}", id="lists"),
        pytest.param(f"{b64(['alg'])}.{b64({})}.{b64(b'x')}", id="a list that has an algorithm"),
        pytest.param(f"{b64('alg')}.{b64({})}.{b64(b'x')}", id="a text that has an algorithm"),
        pytest.param(signed(payload=b"[" * 5500), id="deep"),
        pytest.param(signed(payload=b'{"a":' * 1000), id="deep objects"),
    ],
)
def test_a_bad_token_is_nobodys(found: Callable[[str], Credential | None], token: str) -> None:
    assert found(token) is None


# --- as attackers make them ----------------------------------------------------------------------------------------

ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PUBLIC = RSA.as_dict(private=False)


def by_ec(signature: Callable[[bytes], bytes], **header: Any) -> str:
    signed_part = f"{b64({'alg': 'ES256', 'kid': EC.kid, **header})}.{b64(claims())}"
    return f"{signed_part}.{b64(signature(signed_part.encode()))}"


def psychic(r: int, s: int) -> str:
    """A signature that a bad implementation takes for any message (CVE-2022-21449)."""
    return by_ec(lambda _: r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def by_hmac(secret: bytes, **header: Any) -> str:
    signed_part = f"{b64({'alg': 'HS256', 'kid': 'rsa-1', **header})}.{b64(claims())}"
    return f"{signed_part}.{b64(hmac.digest(secret, signed_part.encode(), 'sha256'))}"


def raw(head: str, payload: str, key: RSAKey = RSA) -> str:
    """Header and claims to the letter, signed well."""
    signed_part = f"{b64(head.encode())}.{b64(payload.encode())}"
    return f"{signed_part}.{b64(key.private_key.sign(signed_part.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def with_claim(name: str, json_text: str) -> str:
    return raw('{"alg":"RS256","kid":"rsa-1"}', f'{json.dumps(claims())[:-1]},"{name}":{json_text}}}')


@pytest.mark.parametrize(
    "token",
    [
        *(
            pytest.param(psychic(r, s), id=f"psychic {r:x} {s:x}")
            for r in (0, ORDER_OF_P256)
            for s in (0, ORDER_OF_P256)
        ),
        pytest.param(by_ec(lambda part: EC.private_key.sign(part, ECDSA(hashes.SHA256()))), id="ES256 in DER"),
        pytest.param(by_ec(lambda _: b""), id="ES256 without a signature"),
        pytest.param(signed(header={"kid": EC.kid}), id="RS256 by the key of ES256"),
        pytest.param(by_ec(lambda _: bytes(64), kid=RSA.kid), id="ES256 by the key of RS256"),
        pytest.param(by_hmac(json.dumps(PUBLIC).encode()), id="HMAC over the key's JSON"),
        pytest.param(by_hmac(RSA.as_der(private=False)), id="HMAC over the key in DER"),
        pytest.param(by_hmac(b""), id="HMAC over nothing"),
        pytest.param(by_hmac(b"", kid=None), id="HMAC of no key"),
        *(
            pytest.param(f"{b64({'alg': name, 'kid': 'rsa-1'})}.{b64(claims())}.", id=f"alg {name}")
            for name in ("nOnE", "NONE", "None", "", None, ["RS256"], {"RS256": 1}, 5)
        ),
        *(pytest.param(signed(header={"kid": kid}), id=f"key {kid}") for kid in (["rsa-1"], {"a": 1}, 5, True, "x")),
        pytest.param(signed(header={"b64": False, "crit": ["b64"]}), id="claims that are not encoded"),
        pytest.param(signed(header={"b64": False}), id="claims that are not encoded, uncritically"),
        pytest.param(raw('{"alg":"RS256","alg":"none","kid":"rsa-1"}', json.dumps(claims())), id="two algorithms"),
        pytest.param(with_claim("iss", '"https://other.example"'), id="two issuers"),
        pytest.param(with_claim("exp", "1"), id="two ends"),
        pytest.param(signed().replace(".", "=.", 1), id="padded header"),
        pytest.param(signed() + "==", id="padded signature"),
        pytest.param(" " + signed(), id="a space before"),
        *(
            pytest.param(with_claim("exp", text), id=f"end {text}")
            for text in ("NaN", "Infinity", "-Infinity", "1e999", "true", "[]", "null", '"9999999999"')
        ),
        pytest.param(with_claim("nbf", "NaN"), id="beginning NaN"),
        pytest.param(with_claim("sub", "true"), id="subject true"),
        pytest.param(with_claim("sub", r'"\ud800"'), id="subject that is no Unicode"),
    ],
)
def test_what_attackers_make_is_nobodys(found: Callable[[str], Credential | None], token: str) -> None:
    assert found(token) is None


def test_an_end_far_away_is_one(found: Callable[[str], Credential | None]) -> None:
    assert found(with_claim("exp", "1" + "0" * 400)) is not None


def test_keys_that_a_token_names_are_not_asked_for(found: Callable[[str], Credential | None]) -> None:
    """Whoever listens at `jku` and `x5u` hears nothing, and what `x5c` brings counts for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        for header in (
            {"jku": url},
            {"x5u": url},
            {"x5c": [b64(STRANGER.as_der(private=False))]},
            {"jku": url, "kid": "x"},
        ):
            assert found(signed(STRANGER, header=header)) is None
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("viewer", "viewer"),
        (["predictor", "something", "operator"], "operator"),
        ("root", "none"),
        (None, "none"),
        ({"predictor": True}, "none"),
    ],
)
def test_roles_come_from_the_claim(found: Callable[[str], Credential | None], given: object, role: str) -> None:
    credential = found(signed(darkroom_role=given))
    assert credential is not None
    assert credential.role == role


@pytest.mark.parametrize(("given", "models"), [(["a", "b"], {"a", "b"}), ("a", {"a"}), ([], set()), (None, None)])
def test_models_come_from_the_claim(found: Callable[[str], Credential | None], given: object, models: object) -> None:
    credential = found(signed(darkroom_models=given))
    assert credential is not None
    assert credential.models == models


def test_a_claim_within_a_claim(keys_file: Path) -> None:
    rules = TokenRules(issuer=ISSUER, audience=AUDIENCE, keys=str(keys_file), role_claim="realm_access.roles")
    found = asyncio.run(Tokens(rules).find(signed(realm_access={"roles": ["operator"]})))
    assert found is not None
    assert found.role == "operator"


def test_new_keys_are_read_when_a_token_names_one_and_old_ones_end(keys_file: Path) -> None:
    now = time.time()
    fresh = RSAKey.generate_key(2048, {"kid": "rsa-2"}, private=True)

    async def work() -> None:
        nonlocal now
        tokens = Tokens(TokenRules(issuer=ISSUER, audience=AUDIENCE, keys=str(keys_file)), lambda: now)
        assert await tokens.find(signed()) is not None
        keys_file.write_text(json.dumps(KeySet([fresh]).as_dict(private=False)))
        assert await tokens.find(signed(fresh)) is None  # read a moment ago
        now += 11
        assert await tokens.find(signed(fresh)) is not None
        assert await tokens.find(signed(sub="bert")) is None
        now += 60
        assert await tokens.find(signed()) is None  # no longer believed either

    asyncio.run(work())


def test_without_keys_nobody_can_say(tmp_path: Path) -> None:
    tokens = Tokens(TokenRules(issuer=ISSUER, audience=AUDIENCE, keys=str(tmp_path / "none.json")))
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(tokens.find(signed()))
    assert caught.value.status == 503


@pytest.mark.parametrize("place", ["http://issuer.example/keys", "ftp://x/keys", "data:text/plain,{}"])
def test_keys_come_from_files_and_https_only(place: str) -> None:
    with pytest.raises(RequestRefused):
        asyncio.run(Tokens(TokenRules(issuer=ISSUER, audience=AUDIENCE, keys=place)).find(signed()))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithms": ("HS256",)}, "HS256"),
        ({"algorithms": ("none",)}, "DARKROOM_JWT_ALGORITHMS"),
        ({"audience": ""}, "DARKROOM_JWT_AUDIENCE"),
    ],
)
def test_rules_that_would_let_anybody_in_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TokenRules(**{"issuer": ISSUER, "audience": AUDIENCE, "keys": "", **changes})
