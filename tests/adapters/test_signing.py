"""Ed25519 by a test vector of its own standard, and by another implementation."""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.adapters.signing import Signer, Trust, public_keys, public_pem
from pipelines.core.anchors import GENESIS, Anchor

# RFC 8032, section 7.1, test 1.
SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

KEY = base64.b64encode(bytes.fromhex(SECRET)).decode()
ANCHOR = Anchor(seq=7, hash="a" * 64, at="2026-01-01T00:00:00+00:00", previous=GENESIS)


def test_the_public_key_is_the_standards() -> None:
    assert Signer(KEY).public_key == PUBLIC
    assert public_keys(public_pem(KEY).encode(), "") == {PUBLIC}


@pytest.mark.parametrize(
    "change", [{"seq": 8}, {"hash": "b" * 64}, {"at": "2027-01-01T00:00:00+00:00"}, {"previous": "c" * 64}]
)
def test_a_signature_holds_for_what_was_signed_only(change: dict[str, object]) -> None:
    signed = Signer(KEY).sign(ANCHOR)
    trust = Trust({PUBLIC})
    assert trust(signed) == ""
    assert "forged" in trust(replace(signed, **change))  # type: ignore[arg-type]
    assert "forged" in trust(replace(signed, signature="no hex"))
    assert "another key" in Trust({"0" * 64})(signed)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_openssl_says_the_same(tmp_path: Path) -> None:
    signed = Signer(KEY).sign(ANCHOR)
    for name, content in {
        "statement": signed.statement(),
        "signature": bytes.fromhex(signed.signature),
        "key.pem": public_pem(KEY).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "statement"]
    done = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Verified Successfully" in done.stdout, done.stderr
