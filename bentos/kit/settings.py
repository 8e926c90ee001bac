"""The only reader of the environment in the serving tier (variables DARKROOM_*)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bentos.kit.access.settings import AccessSettings, TokenRules
from pipelines.core import service_variables
from pipelines.core.cores import num_cores
from pipelines.core.errors import UserError
from pipelines.core.service_variables import Choice, Number
from pipelines.core.traces import ENDPOINT, SAMPLE, Tracing, tracing


@dataclass(frozen=True, kw_only=True)
class PredictionLogSettings:
    """Which answers are logged, and where."""

    share: float
    """Of all answers: above 0, at most 1."""
    images: bool
    """Also the images' bytes."""
    spool: Path
    """Folder on this machine."""
    max_spool_bytes: int
    """Of all that lies there uncollected; what is oldest is given up."""


@dataclass(frozen=True, kw_only=True)
class RedisSettings:
    """What processes share."""

    url_file: Path
    """File with its URL, password included: redis://, rediss:// or unix://."""
    answers_s: int
    """So long an answer is kept there; 0: answers are not shared, only rates."""
    max_answer_bytes: int
    """Of one; those of a model with larger ones are not shared."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How one serving process works. Build it with `load()`."""

    model_folder: Path
    """The model package."""
    weights: Path | None
    """Folder of the weights that processes of this machine share; None: each has its own."""
    cluster: str
    """The gateway's name for the deployment that this process is part of; it vouches for the process on /readyz."""
    threads: int
    """Threads of the model for one batch."""
    concurrency: int
    """Batches that are decoded and classified at once."""
    max_batch: int
    """Images that the model takes at once."""
    max_waiting: int
    """Images beyond these are refused with 503 instead of queueing."""
    max_wait_s: float
    """So are those that would wait longer than this, but for a few images a thread."""
    max_images: int
    """Images of one request of the Open Inference Protocol."""
    max_body_bytes: int
    """Of one image."""
    max_batch_bytes: int
    """Of all images of a batch request."""
    cache_bytes: int
    """Answers that are kept for the same image again; 0 keeps none."""
    top_k: int
    """Classes in an answer unless the request asks otherwise."""
    provider: str
    """auto, cpu or cuda."""
    grpc_port: int
    """0: no gRPC."""
    grpc_host: str
    access: AccessSettings
    redis: RedisSettings | None
    """None: each process has its share of a rate, and its own cache."""
    tracing: Tracing | None
    """None: no request is traced."""
    prediction_log: PredictionLogSettings | None
    """None: no answer is logged."""
    drain_timeout_s: float
    """What gRPC calls in flight have to finish when the process is asked to end."""


def load(default_model_folder: Path) -> ServiceSettings:
    """Settings from the environment. Raises UserError naming the variable."""
    threads = _number("DARKROOM_THREADS", 1, maximum=256)
    return ServiceSettings(
        model_folder=Path(os.environ.get("DARKROOM_MODEL_FOLDER") or default_model_folder),
        weights=_path("DARKROOM_WEIGHTS"),
        cluster=cluster(),
        threads=threads,
        # Every core has a batch; the supervisor divides them between the processes of a deployment.
        concurrency=_number("DARKROOM_CONCURRENCY", max(1, num_cores() // threads), maximum=1024),
        max_batch=service_variables.MAX_BATCH.read(os.environ),
        max_waiting=service_variables.MAX_WAITING.read(os.environ),
        max_wait_s=service_variables.MAX_WAIT_MS.read(os.environ) / 1000,
        max_images=service_variables.MAX_IMAGES.read(os.environ),
        max_body_bytes=max_body_bytes(),
        max_batch_bytes=service_variables.MAX_BATCH_BYTES.read(os.environ),
        cache_bytes=service_variables.CACHE_BYTES.read(os.environ),
        top_k=_number("DARKROOM_TOP_K", 5, maximum=1000),
        provider=service_variables.PROVIDER.read(os.environ),
        grpc_port=_number("DARKROOM_GRPC_PORT", 0, minimum=0, maximum=65535),
        grpc_host=os.environ.get("DARKROOM_GRPC_HOST") or "127.0.0.1",
        access=_access(),
        redis=_redis(),
        tracing=tracing(os.environ.get(ENDPOINT) or "", os.environ.get(SAMPLE) or ""),
        prediction_log=_prediction_log(),
        drain_timeout_s=_number("DARKROOM_DRAIN_TIMEOUT_S", 30, maximum=3600),
    )


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How the process works that finds similar images. Build it with `load_search()`."""

    cluster: str
    """As for other services."""
    default_model: str
    """The one that /v1/similar is about."""
    recipe_folders: tuple[Path, ...]
    """Where recipes lie; a later folder wins."""
    store_uri: str
    s3_endpoint_url: str | None
    cache: Path
    """Folder for the indexes of labels, and for what of the store is not on this machine."""
    vectors_url_file: Path | None
    """File with the PostgreSQL URL of the stored embeddings; None: the online features are not in PostgreSQL."""
    threads: int
    """Of ONNX Runtime, for one image."""
    concurrency: int
    """Images that are decoded and embedded at once."""
    max_waiting: int
    """Requests beyond these are refused with 503 instead of queueing."""
    max_wait_s: float
    """So are those that would wait longer than this for a thread."""
    max_body_bytes: int
    access: AccessSettings
    tracing: Tracing | None


def load_search() -> SearchSettings:
    """Settings from the environment. Raises UserError naming the variable."""
    threads = _number("DARKROOM_THREADS", 1, maximum=256)
    folders = os.environ.get("DARKROOM_RECIPES") or ""
    return SearchSettings(
        cluster=cluster(),
        default_model=os.environ.get("DARKROOM_DEFAULT_MODEL") or "digits",
        recipe_folders=tuple(Path(folder).absolute() for folder in folders.split(os.pathsep) if folder),
        store_uri=_required("DARKROOM_STORE", "the object store, a folder or s3://bucket/prefix"),
        s3_endpoint_url=os.environ.get("DARKROOM_S3_ENDPOINT_URL") or None,
        cache=Path(_required("DARKROOM_CACHE", "a folder on this machine")).absolute(),
        vectors_url_file=_path("DARKROOM_VECTORS_URL_FILE"),
        threads=threads,
        concurrency=_number("DARKROOM_CONCURRENCY", max(1, num_cores() // threads), maximum=1024),
        max_waiting=service_variables.MAX_WAITING.read(os.environ),
        max_wait_s=service_variables.MAX_WAIT_MS.read(os.environ, 2000) / 1000,
        max_body_bytes=max_body_bytes(),
        access=_access(),
        tracing=tracing(os.environ.get(ENDPOINT) or "", os.environ.get(SAMPLE) or ""),
    )


def cluster() -> str:
    """The gateway's name for the processes that this one is part of; empty where there is no gateway."""
    return os.environ.get("DARKROOM_CLUSTER") or ""


def _access() -> AccessSettings:
    issuer = os.environ.get("DARKROOM_JWT_ISSUER")
    per_minute = _number("DARKROOM_JWT_PER_MINUTE", 0, minimum=0, maximum=10**9)
    return AccessSettings(
        required=_choice("DARKROOM_AUTH", ("required", "off")) == "required",
        keys_url_file=_path("DARKROOM_KEYS_URL_FILE"),
        platform_key_file=_path("DARKROOM_PLATFORM_KEY_FILE"),
        token_rules=TokenRules(
            issuer=issuer,
            audience=os.environ.get("DARKROOM_JWT_AUDIENCE") or "",
            keys=os.environ.get("DARKROOM_JWT_KEYS") or "",
            algorithms=tuple((os.environ.get("DARKROOM_JWT_ALGORITHMS") or "RS256,ES256").replace(" ", "").split(",")),
            role_claim=os.environ.get("DARKROOM_JWT_ROLE_CLAIM") or "darkroom_role",
            models_claim=os.environ.get("DARKROOM_JWT_MODELS_CLAIM") or "darkroom_models",
            per_minute=per_minute or None,
        )
        if issuer
        else None,
        num_processes=_number("DARKROOM_PROCESSES", 1, maximum=1000),
    )


def _redis() -> RedisSettings | None:
    url_file = _path("DARKROOM_REDIS_URL_FILE")
    if url_file is None:
        return None
    return RedisSettings(
        url_file=url_file,
        answers_s=_number("DARKROOM_REDIS_ANSWERS_S", 3600, minimum=0, maximum=10**9),
        max_answer_bytes=_number("DARKROOM_REDIS_MAX_ANSWER_BYTES", 256 * 1024, maximum=2**29),
    )


def _prediction_log() -> PredictionLogSettings | None:
    """Where nobody collects there is no log, unless one is asked for."""
    spool, share = _path("DARKROOM_PREDICTION_SPOOL"), _share("DARKROOM_LOG_PREDICTIONS", 0.1)
    if spool is None and share and os.environ.get("DARKROOM_LOG_PREDICTIONS"):
        raise UserError(f"DARKROOM_LOG_PREDICTIONS={share:g}: DARKROOM_PREDICTION_SPOOL must name a folder for the log")
    if spool is None or not share:
        return None
    return PredictionLogSettings(
        share=share,
        images=_number("DARKROOM_LOG_IMAGES", 0, minimum=0, maximum=1) == 1,
        spool=spool,
        max_spool_bytes=_number("DARKROOM_PREDICTION_SPOOL_MB", 256, minimum=16, maximum=2**20) * 1024**2,
    )


def _path(name: str) -> Path | None:
    text = os.environ.get(name)
    return Path(text) if text else None


def _required(name: str, what: str) -> str:
    text = os.environ.get(name)
    if not text:
        raise UserError(f"{name} is not set: expected {what}")
    return text


def max_body_bytes() -> int:
    """Of one image. Raises UserError naming the variable."""
    return service_variables.MAX_BODY_BYTES.read(os.environ)


def max_bytes_in_flight() -> int:
    """Of all images and unfinished bodies that a process holds. Raises UserError naming the variable."""
    return service_variables.MAX_BYTES_IN_FLIGHT.read(os.environ)


def give_to_service(*, host: str, grpc_port: int, drain_timeout_s: int) -> None:
    """Say by the environment what BentoML has no way to hand to the service that it imports."""
    os.environ["DARKROOM_GRPC_PORT"] = str(grpc_port)
    os.environ["DARKROOM_GRPC_HOST"] = host
    os.environ["DARKROOM_DRAIN_TIMEOUT_S"] = str(max(1, drain_timeout_s))


def _number(name: str, default: int, *, maximum: int, minimum: int = 1) -> int:
    return Number(name=name, default=default, minimum=minimum, maximum=maximum).read(os.environ)


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
    return Choice(name=name, allowed=allowed).read(os.environ)
