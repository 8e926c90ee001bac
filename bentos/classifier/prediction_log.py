"""The sampled log of what was answered, for whoever looks later whether the world has drifted from the training data.

The event loop decides and hands over, in microseconds; a thread of its own makes the records and writes them. What it
cannot keep up with, or has no room for, is given up and counted: a request never waits for its log.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bentos.classifier.identity import Identity
from bentos.kit.settings import PredictionLogSettings
from bentos.kit.spool import SpoolFull, SpoolWriter
from bentos.kit.telemetry import LOG_DROPPED, LOGGED
from pipelines.core.inference import Outputs
from pipelines.core.pixelset import Pixels
from pipelines.core.prediction_spool import RawImage, Record, image_frame, prediction_frame
from pipelines.core.preprocessing import measure

_MAX_WAITING = 1024
_MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Of images that wait to be written; one more is given up."""
_PAUSE_S = 1.0
"""After a disk refused; what comes meanwhile is given up."""
_END_S = 5.0
"""What the thread has for what still waits when the process ends; a disk that hangs must not keep it."""
_KNOWN_IMAGES = 10_000
"""Images of which a process remembers that it has logged their bytes."""
_PROOF_CREDENTIAL, _PROOF_REQUEST = "platform", "golden-set"

logger = logging.getLogger("darkroom.prediction-log")


class Asker(NamedTuple):
    """Who asked, under which id, for which image of the request."""

    credential: str = ""
    request_id: str = ""
    place: int = 0

    @property
    def proves(self) -> bool:
        """The supervisor, which proves a process before it serves, with or without credentials: no traffic."""
        return self.credential == _PROOF_CREDENTIAL or self.request_id == _PROOF_REQUEST


NOBODY = Asker()


class _Answered(NamedTuple):
    at: float
    asker: Asker
    image: bytes | Pixels
    sha256: bytes | None
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    cached: bool


class PredictionLog:
    """Belongs to one event loop; `close` writes what waits and ends the thread."""

    def __init__(
        self, settings: PredictionLogSettings, identity: Identity, variant: str, class_names: Sequence[str]
    ) -> None:
        self._share, self._images = settings.share, settings.images
        self._limit = int(settings.share * 2**64)
        self._identity, self._variant, self._class_names = identity, variant, class_names
        self._spool = SpoolWriter(settings.spool, settings.max_spool_bytes)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._trouble, self._again_at, self._reason = "", 0.0, ""
        # Each number has one thread that changes it, so that no lock is needed.
        self._given = self._given_bytes = self._done = self._done_bytes = 0
        self._waiting: queue.SimpleQueue[_Answered | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    def samples(self, asker: Asker) -> bool:
        """Whether an answer is logged: a question of its request's id and the image's place in it, so that two versions
        which get the same request, one of them in the shadow, log the same ones and can be compared pair by pair.
        """
        # 64 bits of a good hash: ids that count up are as likely as any.
        drawn = hashlib.blake2b(b"%b/%d" % (asker.request_id.encode(), asker.place), digest_size=8).digest()
        return int.from_bytes(drawn, "little") < self._limit

    def offer(
        self,
        asker: Asker,
        image: bytes | Pixels,
        outputs: Outputs,
        *,
        row: int = 0,
        sha256: bytes | None = None,
        cached: bool = False,
    ) -> None:
        """Log one answer if it is sampled: row `row` of `outputs`. The image is encoded bytes, or pixels [H, W, 3]."""
        if not self.samples(asker) or asker.proves:
            return
        num_bytes = image.nbytes if isinstance(image, np.ndarray) else len(image)
        if (
            self._given - self._done >= _MAX_WAITING
            or self._given_bytes - self._done_bytes + num_bytes > _MAX_WAITING_BYTES
        ):
            LOG_DROPPED.labels("queue").inc()
            return
        self._given += 1
        self._given_bytes += num_bytes
        # Copies: views would keep alive the whole batch that the image was part of.
        probabilities, embedding = outputs.probabilities[row].copy(), outputs.embedding[row].copy()
        if isinstance(image, np.ndarray):
            image = image.copy()
        self._waiting.put(_Answered(time.time(), asker, image, sha256, probabilities, embedding, cached))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(_END_S)

    # --- on the log's thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                one = self._waiting.get(timeout=self._spool.wait_s())
            except queue.Empty:
                self._spool.finish_if_due()
                continue
            if one is None:
                break
            self._log(one)
            self._done += 1
            self._done_bytes += one.image.nbytes if isinstance(one.image, np.ndarray) else len(one.image)
            del one  # its image
            self._spool.finish_if_due()
        self._spool.finish()

    def _log(self, one: _Answered) -> None:
        if time.monotonic() < self._again_at:
            LOG_DROPPED.labels(self._reason).inc()
            return
        given_up = self._spool.num_given_up
        try:
            self._write(one)
        except (SpoolFull, OSError) as error:
            self._reason = "spool" if isinstance(error, SpoolFull) else "disk"
            LOG_DROPPED.labels(self._reason).inc()
            self._again_at = time.monotonic() + _PAUSE_S
            self._tell(str(error))
        except Exception:  # a thread that died would log nothing any more, in silence
            LOG_DROPPED.labels("failed").inc()
            logger.exception("a prediction was not logged")
        else:
            LOGGED.inc()
            self._tell("")
        if more := self._spool.num_given_up - given_up:
            LOG_DROPPED.labels("spool").inc(more)

    def _write(self, one: _Answered) -> None:
        sha256 = one.sha256 or hashlib.sha256(one.image if isinstance(one.image, bytes) else one.image.data).digest()
        if self._images and isinstance(one.image, bytes) and sha256 not in self._known:
            self._spool.write(image_frame(RawImage(sha256=sha256.hex(), data=one.image)))
            self._known[sha256] = None
            if len(self._known) > _KNOWN_IMAGES:
                self._known.popitem(last=False)
        self._spool.write(prediction_frame(self._record(one, sha256.hex())))

    def _record(self, one: _Answered, sha256: str) -> Record:
        identity, label = self._identity, int(one.probabilities.argmax())
        height, width = measure(one.image) if isinstance(one.image, bytes) else (None, None)
        return Record(
            at=one.at,
            model=identity.model_name,
            version=identity.model_version,
            package_digest=identity.package_digest,
            variant=self._variant,
            request_id=one.asker.request_id,
            image_index=one.asker.place,
            credential=one.asker.credential,
            input="image" if isinstance(one.image, bytes) else "pixels",
            image_sha256=sha256,
            image_width=width,
            image_height=height,
            label=label,
            class_name=self._class_names[label],
            cached=one.cached,
            share=self._share,
            probabilities=one.probabilities,
            embedding=one.embedding,
        )

    def _tell(self, trouble: str) -> None:
        """Once, when it begins and when it is over."""
        if bool(trouble) != bool(self._trouble):
            told = {"reason": trouble} if trouble else None
            logger.warning("predictions are not logged" if trouble else "predictions are logged again", extra=told)
        self._trouble = trouble
