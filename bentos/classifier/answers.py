"""Answers that were given before: in this process's memory and, where there is a Redis, in what all processes share.

They are kept for the same credential only: how fast one comes must not tell what others have asked.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bentos.classifier.prediction_log import Asker
from bentos.kit.cache import Cache
from bentos.kit.shared.cache import SharedCache
from bentos.kit.shared.server import PREFIX
from pipelines.core.inference import Classifier, Outputs

_ENTRY_BYTES = 1000
"""Of an answer in memory, besides its numbers: three arrays, a key, a place in a table."""
_HEADER = struct.Struct("<4sII16s")
_MAGIC = b"DKA1"
"""Raised with the layout."""


@dataclass(frozen=True, kw_only=True)
class AnswerCodec:
    """The answer to one image as bytes of a fixed layout.

    Little endian: magic (4), number of classes (u32), width of the embedding (u32), digest (16), then float32 logits,
    probabilities and embedding. The digest is BLAKE2b's of key, numbers and what follows it, so that bytes that were
    damaged, cut off, or meant for another key are no answer.
    """

    num_classes: int
    embedding_dim: int

    @property
    def num_bytes(self) -> int:
        return _HEADER.size + 4 * (2 * self.num_classes + self.embedding_dim)

    def encode(self, key: str, value: Outputs) -> bytes:
        body = b"".join(
            np.asarray(part, "<f4").tobytes() for part in (value.logits, value.probabilities, value.embedding)
        )
        return self._header(key, body) + body

    def decode(self, key: str, data: bytes) -> Outputs | None:
        if len(data) != self.num_bytes or data[: _HEADER.size] != self._header(key, memoryview(data)[_HEADER.size :]):
            return None
        numbers: NDArray[np.float32] = np.frombuffer(data, "<f4", offset=_HEADER.size)
        logits, probabilities, embedding = np.split(numbers, (self.num_classes, 2 * self.num_classes))
        return Outputs(logits=logits[None], probabilities=probabilities[None], embedding=embedding[None])

    def _header(self, key: str, body: bytes | memoryview) -> bytes:
        numbers = struct.pack("<II", self.num_classes, self.embedding_dim)
        digest = hashlib.blake2b(key.encode() + numbers, digest_size=16)
        digest.update(body)
        return _HEADER.pack(_MAGIC, self.num_classes, self.embedding_dim, digest.digest())


class Answers:
    """Two levels. Belongs to one event loop."""

    def __init__(self, max_bytes: int, shared: SharedCache[Outputs] | None, classifier: Classifier) -> None:
        """`max_bytes` of memory; without any nothing is kept anywhere."""
        self._memory: Cache[Outputs] = Cache(max_bytes)
        self._shared = shared
        self._made_by = made_by(classifier)

    @property
    def enabled(self) -> bool:
        return self._memory.enabled

    async def find(self, asker: Asker, sha256: bytes) -> Outputs | None:
        """The answer to an image, by its SHA-256."""
        # A process has one package, which holds its preprocessing: what is left of the key is who asks, and the image.
        found = self._memory.get((asker.credential, sha256))
        if found is None and self._shared is not None and not asker.proves:
            found = await self._shared.get(self._key(asker, sha256))
            if found is not None:
                self._remember(asker, sha256, found)
        return found

    def keep(self, asker: Asker, sha256: bytes, outputs: Outputs) -> None:
        """An answer to one image, in memory of its own."""
        self._remember(asker, sha256, outputs)
        # Who proves a process wants its answers, and not those of an earlier one of the same package.
        if self._shared is not None and not asker.proves:
            self._shared.put(self._key(asker, sha256), outputs)

    async def settle(self) -> None:
        """Write what waits to be shared."""
        if self._shared is not None:
            await self._shared.close()

    def _remember(self, asker: Asker, sha256: bytes, outputs: Outputs) -> None:
        self._memory.put((asker.credential, sha256), outputs, outputs.nbytes + _ENTRY_BYTES)

    def _key(self, asker: Asker, sha256: bytes) -> str:
        """One digest of all: who reads Redis' keys learns neither who asked nor for what."""
        asked_by = hashlib.sha256(asker.credential.encode()).digest()
        return f"{PREFIX}answer:{hashlib.sha256(self._made_by + asked_by + sha256).hexdigest()}"


def made_by(classifier: Classifier) -> bytes:
    """Digest of all that an answer depends on besides the image: package, preprocessing, variant, provider."""
    package = classifier.package
    preprocessing = json.dumps(package.preprocessing.to_json(), sort_keys=True).encode()
    parts = (package.digest, hashlib.sha256(preprocessing).hexdigest(), classifier.variant, classifier.provider)
    return hashlib.sha256(json.dumps(parts).encode()).digest()
