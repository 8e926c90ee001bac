"""The Redis that serving processes share: checked when the platform starts, and looked at while it is up.

Requests do not depend on this: each process finds out for itself. It is for `darkroom status`.
"""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.settings import Settings

PERIOD_S = 5.0
_TIMEOUT_S = 2.0
_SCHEMES = ("redis://", "rediss://", "unix://")


def check(settings: Settings) -> None:
    """Raises UserError where the file with the URL is none. What it holds is never said: it may have a password."""
    path = settings.redis_url_file
    if path is None:
        return
    try:
        url = path.read_text().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"DARKROOM_REDIS_URL_FILE={path}: {reason}") from None
    if not url.startswith(_SCHEMES) or len(url.split()) != 1:
        raise UserError(
            f"DARKROOM_REDIS_URL_FILE={path}: expected one line that begins with {', '.join(_SCHEMES[:-1])} or "
            f"{_SCHEMES[-1]}"
        )


class RedisWatch:
    """Asks now and then, where there is a Redis, until told to stop."""

    def __init__(self, settings: Settings, period_s: float = PERIOD_S) -> None:
        self.trouble = ""
        """Why it did not answer; empty where it did, or where there is none."""
        self._url_file = settings.redis_url_file
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)

    def start(self) -> None:
        if self._url_file is not None:
            self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        assert self._url_file is not None
        while not self._stop.is_set():
            trouble = _trouble(self._url_file)
            if trouble != self.trouble and not (trouble and self.trouble):
                _say(f"Redis is away ({trouble})" if trouble else "Redis is back")
            self.trouble = trouble
            self._stop.wait(self._period_s)


def _trouble(url_file: Path) -> str:
    """By the kind of the error and not by its text, which quotes parts of the URL."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    try:
        with Redis.from_url(
            url_file.read_text().strip(),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ) as server:
            server.ping()
    except (RedisError, OSError, ValueError, TypeError) as error:
        return f"Redis of {url_file}: {type(error).__name__}"
    return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} redis: {text}\n")
