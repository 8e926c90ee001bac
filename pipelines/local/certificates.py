"""The certificate of the gateway's TLS listener: a mounted one, or one made here for development.

Made: a certificate authority of this home and a certificate under it, renewed together before they expire. The
authority's key is never written, so that nobody can ever sign another certificate that trusts it brings.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import UserError
from pipelines.settings import Settings

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

VALID = timedelta(days=397)
"""Browsers take no longer ones."""
RENEW_BEFORE = timedelta(days=30)
_CLOCKS_DIFFER = timedelta(minutes=5)


def authority(settings: Settings) -> Path:
    """What a client of the made certificate trusts: `curl --cacert`."""
    return settings.home / "tls-ca.pem"


def ensure(settings: Settings) -> None:
    """See that certificate and key are there; make or renew those for development.

    Raises UserError where a mounted file cannot be read.
    """
    chain, key = settings.tls_files
    if settings.tls_certificate is not None:
        for name, path in (("DARKROOM_TLS_CERT", chain), ("DARKROOM_TLS_KEY", key)):
            if not os.access(path, os.R_OK):
                raise UserError(f"{name}={path}: no such file, or this user may not read it")
    elif not _is_good(chain, settings) or not authority(settings).exists():
        _make(settings, chain)


def _is_good(chain: Path, settings: Settings) -> bool:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(chain.read_bytes())
    except (OSError, ValueError):
        return False
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE and set(names) == set(_names(settings))


def _names(settings: Settings) -> list[x509.GeneralName]:
    """Loopback; where others may connect, this machine's name and address too."""
    from cryptography import x509

    addresses = ["127.0.0.1", "::1"]
    hosts = ["localhost"]
    host = ipaddress.ip_address(settings.gateway_host)
    if not host.is_loopback:
        hosts.append(socket.gethostname())
        addresses += [] if host.is_unspecified else [str(host)]
    return [*map(x509.DNSName, hosts), *(x509.IPAddress(ipaddress.ip_address(one)) for one in addresses)]


def _make(settings: Settings, path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name, name = _named(f"Darkroom development authority, {socket.gethostname()}"), _named("Darkroom gateway")
    ca = (
        _begun(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        _begun(name, ca_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(settings)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The authority first: whoever reads it anew is ready for the certificate.
    _replace(authority(settings), ca.public_bytes(pem), 0o644)
    _replace(path, leaf.public_bytes(pem) + private, 0o600)


def _named(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.OID_COMMON_NAME, text[:64])])


def _begun(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    """To sign certificates, or handshakes."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others before it has its mode."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)
