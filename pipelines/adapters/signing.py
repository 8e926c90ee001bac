"""Ed25519 signatures (RFC 8032) of anchors. The only place of `cryptography`.

A private key is 32 random bytes in base64, as the installation's secrets keep it; a public key is 32 bytes in hex, and
PEM in files, as `openssl pkey -pubin` reads it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.core.anchors import Anchor
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


class Signer:
    """Signs anchors with one key."""

    def __init__(self, private_key: str) -> None:
        self._key = _private(private_key)
        self.public_key = self._key.public_key().public_bytes_raw().hex()

    def sign(self, anchor: Anchor) -> Anchor:
        """The same with our key and its signature."""
        ours = replace(anchor, public_key=self.public_key)
        return replace(ours, signature=self._key.sign(ours.statement()).hex())


class Trust:
    """Fulfils `core.audit.Distrust`: the signatures of some keys count."""

    def __init__(self, public_keys: Collection[str]) -> None:
        self._keys = frozenset(public_keys)

    def __call__(self, anchor: Anchor) -> str:
        if anchor.public_key not in self._keys:
            return f"it is signed with another key ({anchor.public_key[:16]}…)"
        return "" if _verifies(anchor) else "its signature is forged"


def public_pem(private_key: str) -> str:
    """The public key of a private one, for verifiers."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _private(private_key).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()


def public_keys(pem: bytes, where: str) -> frozenset[str]:
    """Every key of a file; more than one where the platform's key was replaced. Raises UserError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        keys = [load_pem_public_key(block) for block in _PEM.findall(pem)]
    except ValueError as error:
        raise UserError(f"{where}: no public key: {error}") from error
    found = frozenset(key.public_bytes_raw().hex() for key in keys if isinstance(key, Ed25519PublicKey))
    if not found:
        raise UserError(f"{where}: no Ed25519 public key in PEM; the platform's lies in its secrets/audit-anchors.pem")
    return found


def _verifies(anchor: Anchor) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(anchor.public_key))
        key.verify(bytes.fromhex(anchor.signature), anchor.statement())
    except (InvalidSignature, ValueError):
        return False
    return True


def _private(private_key: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
