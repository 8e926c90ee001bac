"""The only reader of the environment in the offline tier (variables DARKROOM_*).

Only the standard library is imported, since every step's start and every parse of a DAG file pay for it.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipelines.core import service_variables
from pipelines.core.errors import UserError
from pipelines.core.limits import BodyLimits
from pipelines.core.traces import ENDPOINT, SAMPLE, Tracing, tracing

REPOSITORY = Path(__file__).resolve().parent.parent

# Preferred ports of the local platform; one that is taken is replaced by the next free one and kept in ports.json.
DEFAULT_PORTS = {
    "airflow": 8081,
    "mlflow": 8082,
    "envoy_admin": 8083,
    "postgres": 8084,
    "similar": 8085,
    "gateway_tls": 8443,
}
DEFAULT_GATEWAY_PORT = 8080
DATABASES = ("airflow", "mlflow", "feast", "darkroom")
PLATFORM_KEY = "platform-key"
"""Name of that secret."""
SERVING_ROLE = "serving"
"""Serving processes' role in the database `darkroom`: it may look up keys and count use."""
SEARCH_ROLE = "search"
"""The role in the database `feast` of the process that searches it: it may read stored embeddings."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where things are. Build it with `load()`."""

    home: Path
    """All state of this installation."""
    store_uri: str
    """Object store: a local folder or s3://bucket/prefix."""
    s3_endpoint_url: str | None
    """Another S3 than Amazon's."""
    gateway_port: int
    """Envoy's listener for plain HTTP, on 127.0.0.1 whatever `gateway_host` says."""
    default_model: str
    """The recipe that the plain names stand for: /v1/classify, `ingest_images`, `train_classifier`."""
    celery_queue: str | None
    """Reserved for a Celery queue of the step operator; None runs steps as local processes."""
    features_redis: str | None = None
    """Feast's online store in Redis (`host:port,db=0,password=…`) instead of PostgreSQL; `similar` needs the latter."""
    gateway_host: str = "127.0.0.1"
    """IP address of Envoy's TLS listener; 0.0.0.0 or :: for every interface."""
    auth: str = "required"
    """`required`, or `off` for this machine alone."""
    tls_certificate: Path | None = None
    """Certificate chain of the TLS listener (PEM) and its key; None: one made for development."""
    tls_key: Path | None = None
    redis_url_file: Path | None = None
    """File with the URL, password included, of the Redis through which serving processes share rates and answers."""
    redis_answers_s: int = 3600
    """So long an answer is kept there; 0: answers are not shared."""
    redis_max_answer_bytes: int = 256 * 1024
    """Of one answer there."""
    tracing: Tracing | None = None
    """The collector of traces; None: nothing is traced."""
    service_variables: tuple[tuple[str, str], ...] = ()
    """Variables that every serving process gets, by name, as somebody has set them (`core.service_variables`)."""
    log_predictions: float = 0.1
    """Share of the served answers that the prediction log keeps."""
    log_images: bool = False
    """Whether it also keeps the images' bytes."""
    prediction_spool_mb: int = 256
    """What of it lies on this machine's disk at most, until it is in the store."""
    keep_predictions_days: int = 90
    """`darkroom gc` frees what is older."""
    min_memory_mb: int = 4000
    """Free memory without which `darkroom up` does not start."""
    min_disk_mb: int = 1000
    """Free disk at the home without which `darkroom up` does not start."""

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def prediction_spool(self) -> Path:
        """Where serving processes leave their part of the prediction log."""
        return self.home / "spool" / "predictions"

    @property
    def recipe_folders(self) -> tuple[Path, Path]:
        """Shipped recipes, then the ones that `darkroom run --data` wrote."""
        return REPOSITORY / "pipelines" / "recipes", self.home / "recipes"

    @property
    def body_limits(self) -> BodyLimits:
        """What the gateway refuses by its length: the same as the processes behind it."""
        given = dict(self.service_variables)
        return BodyLimits(
            max_body_bytes=service_variables.MAX_BODY_BYTES.read(given),
            max_batch_bytes=service_variables.MAX_BATCH_BYTES.read(given),
        )

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """Certificate chain and key. Those made for development lie in one file, so that they change at once."""
        if self.tls_certificate is not None and self.tls_key is not None:
            return self.tls_certificate, self.tls_key
        made = self.secrets / "tls" / "gateway.pem"
        return made, made

    @property
    def tls_url(self) -> str:
        host = "localhost" if _is_loopback(self.gateway_host) else self.gateway_host
        return f"https://{f'[{host}]' if ':' in host else host}:{self.port('gateway_tls')}"

    def port(self, service: str) -> int:
        """The port given to a local service (a key of DEFAULT_PORTS)."""
        override = os.environ.get(f"DARKROOM_{service.upper()}_PORT")
        if override:
            return _port(f"DARKROOM_{service.upper()}_PORT", override)
        return _kept_ports(self.home).get(service, DEFAULT_PORTS[service])

    @property
    def fixed_ports(self) -> frozenset[str]:
        """Services whose port a person has set; they are not moved to a free one."""
        return frozenset(service for service in DEFAULT_PORTS if os.environ.get(f"DARKROOM_{service.upper()}_PORT"))

    @property
    def postgres_is_external(self) -> bool:
        """True where every database has a URL of its own, so that no embedded server is needed."""
        return all(os.environ.get(f"DARKROOM_DATABASE_URL_{owner.upper()}") for owner in DATABASES)

    def secret(self, name: str) -> str:
        """A secret of this installation, made once by `darkroom up`. Raises UserError when it is not there yet."""
        try:
            return (self.secrets / name).read_text().strip()
        except OSError as error:
            raise UserError(f"{self.secrets / name}: no such secret; `darkroom up` makes it") from error

    @property
    def platform_authorization(self) -> dict[str, str]:
        """The header by which the platform itself asks what it serves. Raises UserError before the first `up`."""
        return {"Authorization": f"Bearer {self.secret(PLATFORM_KEY)}"}

    def database_url(self, owner: str) -> str:
        """PostgreSQL URL of one of DATABASES; DARKROOM_DATABASE_URL_<OWNER> replaces the embedded server."""
        external = os.environ.get(f"DARKROOM_DATABASE_URL_{owner.upper()}")
        if external:
            return external
        return self._embedded_url(owner, owner)

    @property
    def serving_database_url(self) -> str:
        """PostgreSQL URL for serving processes; DARKROOM_DATABASE_URL_SERVING where the server is not the embedded one.

        Without it they connect to an external server as Darkroom itself, which may do more than they need.
        """
        given = os.environ.get("DARKROOM_DATABASE_URL_SERVING") or os.environ.get("DARKROOM_DATABASE_URL_DARKROOM")
        return given or self._embedded_url(SERVING_ROLE, "darkroom")

    @property
    def search_database_url(self) -> str:
        """PostgreSQL URL for the process that searches features; DARKROOM_DATABASE_URL_SEARCH where it is not ours.

        Without it it connects to an external server as Feast itself, which may do more than it needs.
        """
        given = os.environ.get("DARKROOM_DATABASE_URL_SEARCH") or os.environ.get("DARKROOM_DATABASE_URL_FEAST")
        return given or self._embedded_url(SEARCH_ROLE, "feast")

    def _embedded_url(self, role: str, database: str) -> str:
        password = quote(self.secret(f"postgres-{role}"), safe="")
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port('postgres')}/{database}"


def _kept_ports(home: Path) -> dict[str, int]:
    """What `darkroom up` chose, the gateway's port included, so that later commands need no variable."""
    try:
        ports: dict[str, int] = json.loads((home / "ports.json").read_text())
        return ports
    except (OSError, ValueError):
        return {}


def _port(name: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"{name}={text!r}: expected a port from 1 to 65535")
    return int(text)


def _megabytes(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise UserError(f"{name}={text!r}: expected a number of megabytes, such as {default}")
    return int(text)


def _number(name: str, default: int, *, minimum: int, what: str) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < minimum:
        raise UserError(f"{name}={text!r}: expected {what}, at least {minimum}, such as {default}")
    return int(text)


def _share(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{name}={text!r}: expected a share from 0 to 1, such as {default:g}")
    return share


def _choice(name: str, allowed: tuple[str, ...]) -> str:
    return service_variables.Choice(name=name, allowed=allowed).read(os.environ)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _path(name: str) -> Path | None:
    text = os.environ.get(name)
    return Path(text).expanduser().absolute() if text else None


def _gateway_host(auth: str) -> str:
    host = os.environ.get("DARKROOM_GATEWAY_HOST") or "127.0.0.1"
    try:
        beyond = not _is_loopback(host)
    except ValueError:
        raise UserError(
            f"DARKROOM_GATEWAY_HOST={host!r}: expected an IP address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ) from None
    if beyond and auth == "off":
        raise UserError(
            f"DARKROOM_GATEWAY_HOST={host} lets other machines in, and DARKROOM_AUTH=off asks none of them who it is; "
            "leave out one of the two"
        )
    return host


def _tls_files() -> tuple[Path | None, Path | None]:
    found = {name: os.environ.get(name) for name in ("DARKROOM_TLS_CERT", "DARKROOM_TLS_KEY")}
    if len(set(map(bool, found.values()))) > 1:
        missing = next(name for name, path in found.items() if not path)
        raise UserError(f"{missing} is not set; certificate and key are named together")
    certificate, key = (Path(path).expanduser().absolute() if path else None for path in found.values())
    return certificate, key


def load() -> Settings:
    """Settings from the environment. Raises UserError naming the variable."""
    auth = _choice("DARKROOM_AUTH", ("required", "off"))
    tls_certificate, tls_key = _tls_files()
    home = Path(os.environ.get("DARKROOM_HOME") or REPOSITORY / ".darkroom").expanduser().absolute()
    return Settings(
        home=home,
        store_uri=os.environ.get("DARKROOM_STORE") or str(home / "store"),
        s3_endpoint_url=os.environ.get("DARKROOM_S3_ENDPOINT_URL") or None,
        gateway_port=_port(
            "DARKROOM_GATEWAY_PORT",
            os.environ.get("DARKROOM_GATEWAY_PORT") or str(_kept_ports(home).get("gateway", DEFAULT_GATEWAY_PORT)),
        ),
        default_model=os.environ.get("DARKROOM_DEFAULT_MODEL") or "digits",
        celery_queue=os.environ.get("DARKROOM_CELERY_QUEUE") or None,
        features_redis=os.environ.get("DARKROOM_FEATURES_REDIS") or None,
        gateway_host=_gateway_host(auth),
        auth=auth,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        redis_url_file=_path("DARKROOM_REDIS_URL_FILE"),
        redis_answers_s=_number("DARKROOM_REDIS_ANSWERS_S", 3600, minimum=0, what="a number of seconds"),
        redis_max_answer_bytes=_number(
            "DARKROOM_REDIS_MAX_ANSWER_BYTES", 256 * 1024, minimum=1, what="a number of bytes"
        ),
        tracing=tracing(os.environ.get(ENDPOINT) or "", os.environ.get(SAMPLE) or ""),
        service_variables=service_variables.given(os.environ),
        log_predictions=_share("DARKROOM_LOG_PREDICTIONS", 0.1),
        log_images=_choice("DARKROOM_LOG_IMAGES", ("0", "1")) == "1",
        prediction_spool_mb=_number("DARKROOM_PREDICTION_SPOOL_MB", 256, minimum=16, what="a number of megabytes"),
        keep_predictions_days=_number("DARKROOM_KEEP_PREDICTIONS_DAYS", 90, minimum=1, what="a number of days"),
        min_memory_mb=_megabytes("DARKROOM_MIN_MEMORY_MB", 4000),
        min_disk_mb=_megabytes("DARKROOM_MIN_DISK_MB", 1000),
    )
