"""How many requests may be under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from small_datasets import picture

from bentos.kit.errors import Overloaded
from bentos.similar.engine import Engine
from pipelines.core.embedding import Embeddings, HogColorV1, Pixels


class Waiting(HogColorV1):
    """Embeds when it is let."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def embed(self, pixels: Pixels) -> Embeddings:
        assert self.may.wait(20)
        return super().embed(pixels)


def png() -> bytes:
    import io

    file = io.BytesIO()
    picture(1).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def embedder() -> Iterator[Waiting]:
    found = Waiting()
    yield found
    found.may.set()


def test_more_than_may_wait_are_refused_at_once(embedder: Waiting) -> None:
    async def ask(engine: Engine) -> Embeddings:
        with engine.place():
            return await engine.embed(embedder, png())

    async def scenario() -> None:
        engine = Engine(threads=1, max_waiting=3, max_wait_s=60)
        asked = [asyncio.create_task(ask(engine)) for _ in range(5)]
        refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 2:
            await asyncio.sleep(0)
            refused = {one for one in asked if one.done()}
        assert [type(one.exception()) for one in refused] == [Overloaded, Overloaded]
        embedder.may.set()
        vectors = [await one for one in asked if one not in refused]
        assert np.allclose(np.stack(vectors) @ vectors[0], 1)
        # There is room again.
        await ask(engine)
        engine.close()

    asyncio.run(scenario())


def test_nobody_waits_longer_than_the_limit(embedder: Waiting) -> None:
    async def scenario() -> None:
        engine = Engine(threads=1, max_waiting=100, max_wait_s=0.5)
        engine._seconds_an_image = 1.0  # as after images that took so long
        with engine.place():
            first = asyncio.create_task(engine.embed(embedder, png()))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught, engine.place():
                pass
            assert caught.value.retry_after_s == 1
            embedder.may.set()
            await first
        engine.close()

    asyncio.run(scenario())
