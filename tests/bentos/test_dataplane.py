"""The dataplane by itself: what it admits, and that its answers do not depend on how images are asked about."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from example_packages import COLOURS, coloured
from slow_classifier import Slow
from starlette.types import Message
from starlette.websockets import WebSocket

from bentos.classifier import stream
from bentos.classifier.batch import _Batch
from bentos.classifier.dataplane import Dataplane
from bentos.classifier.engine import Engine
from bentos.kit import settings
from bentos.kit.access import Caller, Guard
from bentos.kit.access.guard import ANYBODY
from bentos.kit.budget import IN_FLIGHT, Budget
from bentos.kit.errors import Overloaded
from bentos.kit.uploads import Upload
from pipelines.core.access import Scope
from pipelines.core.model_package import ModelPackage


@pytest.fixture
def busy(bento: Path, package: ModelPackage) -> Iterator[Dataplane]:
    """A process of one slow thread that lets five images wait."""
    given = dataclasses.replace(settings.load(bento / "src" / "model"), cache_bytes=0)
    dataplane = Dataplane(given)
    dataplane.engine.close()
    dataplane.engine = Engine(Slow(package, 0.05), threads=1, max_batch=4, max_waiting=5, max_wait_s=60.0)
    yield dataplane
    dataplane.close()


def images(number: int) -> list[bytes]:
    return [coloured(COLOURS[place % 3], place) for place in range(number)]


Ask = Callable[[Dataplane, ModelPackage], Awaitable[object]]


@pytest.mark.parametrize(
    "ask",
    [
        lambda dataplane, package: dataplane.classify(images(1)[0]),
        lambda dataplane, package: dataplane.infer(images(3), None),
        lambda dataplane, package: dataplane.infer(
            (), np.zeros((3, package.preprocessing.height, package.preprocessing.width, 3), np.uint8)
        ),
    ],
    ids=["one image", "several images", "pixels"],
)
def test_a_busy_process_refuses_whatever_comes(busy: Dataplane, package: ModelPackage, ask: Ask) -> None:
    async def work() -> None:
        waiting = [asyncio.create_task(busy.classify(image)) for image in images(5)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await ask(busy, package)
        await asyncio.gather(*waiting)
        await ask(busy, package)  # and takes it when it is idle again

    asyncio.run(work())


def test_a_stream_whose_client_does_not_read_is_not_read_from(busy: Dataplane) -> None:
    """Only a few images are taken in while the first answer cannot be sent."""
    taken = 0
    reading = asyncio.Event()

    async def receive() -> Message:
        nonlocal taken
        if taken == 0:
            taken = 1
            return {"type": "websocket.connect"}
        if taken > 40:
            return {"type": "websocket.disconnect"}
        taken += 1
        return {"type": "websocket.receive", "bytes": images(1)[0]}

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            await reading.wait()

    async def work() -> None:
        socket = WebSocket({"type": "websocket", "headers": [], "path": "/v1/stream"}, receive, send)
        await socket.accept()
        caller = await Guard(required=False).admit(None, Scope.PREDICT, "colours", "id")
        serving = asyncio.create_task(stream.serve(socket, busy, caller, None, 0.0))
        await asyncio.sleep(0.5)
        assert 2 < taken <= 8
        reading.set()
        await serving
        assert taken == 41

    asyncio.run(work())


def test_images_of_a_batch_that_find_no_room_for_their_bytes_wait_while_others_go_on(
    busy: Dataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the bytes gives them back on the same event loop."""
    large = [image + bytes(100_000) for image in images(8)]
    monkeypatch.setattr(IN_FLIGHT, "max_bytes", 250_000)

    async def work() -> list[bytes]:
        caller = Caller(credential=ANYBODY, request_id="batch", guard=Guard(required=False), authorization=None)
        batch = _Batch(busy, caller, None, 0.0)
        share = Budget(2**30).growing(lambda: None)
        uploads = [Upload(name=str(place), data=image, share=share) for place, image in enumerate(large)]
        share.resize(sum(upload.held for upload in uploads))
        answers = await asyncio.gather(*(batch.answer(upload, place) for place, upload in enumerate(uploads)))
        assert share.size == 0
        return answers

    answered = [json.loads(line)["predictions"][0]["class_name"] for line in asyncio.run(work())]
    assert answered == [COLOURS[place % 3] for place in range(8)]
