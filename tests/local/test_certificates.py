"""The certificate that is made for development, and the one that is mounted."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from pipelines import settings as settings_module
from pipelines.core.errors import UserError
from pipelines.local import certificates
from pipelines.settings import Settings


def made(settings: Settings) -> x509.Certificate:
    return x509.load_pem_x509_certificate(settings.tls_files[0].read_bytes())


def names_of(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_it_is_made_once_and_only_its_owner_reads_the_key(home_settings: Settings) -> None:
    certificates.ensure(home_settings)
    first = made(home_settings)
    certificates.ensure(home_settings)
    assert made(home_settings) == first
    chain, key = home_settings.tls_files
    assert (chain.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o600, 0o600)
    authority = certificates.authority(home_settings)
    assert authority.stat().st_mode & 0o777 == 0o644
    assert b"PRIVATE KEY" not in authority.read_bytes()
    assert names_of(first) == {"localhost", "127.0.0.1", "::1"}
    # What curl, Python and browsers ask of a certificate and of who signed it.
    first.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.read_bytes()))
    ssl.create_default_context(cafile=authority).load_cert_chain(chain, key)


def test_it_is_renewed_before_it_expires(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "VALID", certificates.RENEW_BEFORE - timedelta(days=1))
    certificates.ensure(home_settings)
    old = made(home_settings)
    monkeypatch.undo()
    certificates.ensure(home_settings)
    assert made(home_settings).not_valid_after_utc > datetime.now(UTC) + timedelta(days=365)
    assert made(home_settings).serial_number != old.serial_number


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("no certificate")])
def test_what_is_lost_is_made_again(home_settings: Settings, spoil: object) -> None:
    certificates.ensure(home_settings)
    for path in (home_settings.tls_files[0], certificates.authority(home_settings)):
        if path == certificates.authority(home_settings):
            path.unlink()
        else:
            spoil(path)  # type: ignore[operator]
        certificates.ensure(home_settings)
        issuer = x509.load_pem_x509_certificate(certificates.authority(home_settings).read_bytes())
        made(home_settings).verify_directly_issued_by(issuer)


def test_where_others_connect_it_carries_their_name_of_us(home_settings: Settings) -> None:
    certificates.ensure(home_settings)
    open_to_others = replace(home_settings, gateway_host="192.0.2.7")
    certificates.ensure(open_to_others)
    assert names_of(made(open_to_others)) > {"localhost", "192.0.2.7"}


def test_a_mounted_one_is_left_as_it_is(home_settings: Settings, tmp_path: Path) -> None:
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    mounted = replace(home_settings, tls_certificate=chain, tls_key=key)
    with pytest.raises(UserError, match=r"DARKROOM_TLS_CERT=.*tls.crt: no such file"):
        certificates.ensure(mounted)
    chain.write_text("theirs")
    key.write_text("theirs")
    certificates.ensure(mounted)
    assert mounted.tls_files == (chain, key)
    assert not certificates.authority(mounted).exists()


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"DARKROOM_GATEWAY_HOST": "example.org"}, "expected an IP address"),
        ({"DARKROOM_GATEWAY_HOST": "0.0.0.0", "DARKROOM_AUTH": "off"}, "leave out one of the two"),
        ({"DARKROOM_GATEWAY_HOST": "::", "DARKROOM_AUTH": "off"}, "leave out one of the two"),
        ({"DARKROOM_AUTH": "perhaps"}, "DARKROOM_AUTH='perhaps': expected one of required, off"),
        ({"DARKROOM_TLS_CERT": "a.crt"}, "DARKROOM_TLS_KEY is not set"),
        ({"DARKROOM_TLS_KEY": "a.key"}, "DARKROOM_TLS_CERT is not set"),
    ],
)
def test_settings_that_would_open_the_house_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem):
        settings_module.load()


@pytest.mark.parametrize(
    ("host", "auth", "url"),
    [
        ("", "off", "https://localhost:8443"),
        ("::1", "off", "https://localhost:8443"),
        ("192.0.2.7", "", "https://192.0.2.7:8443"),
        ("2001:db8::7", "required", "https://[2001:db8::7]:8443"),
    ],
)
def test_where_tls_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, auth: str, url: str) -> None:
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    monkeypatch.setenv("DARKROOM_GATEWAY_HOST", host)
    monkeypatch.setenv("DARKROOM_AUTH", auth)
    assert settings_module.load().tls_url == url
