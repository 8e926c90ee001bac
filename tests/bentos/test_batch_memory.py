"""What batches hold: within the process's budget, given up where others need the room, gone when the client is."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import tarfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_packages import COLOURS, coloured
from starlette.requests import Request
from starlette.types import Message

from bentos.classifier import batch
from bentos.classifier.batch import Places, classify_batch
from bentos.classifier.dataplane import Dataplane
from bentos.classifier.engine import Engine
from bentos.kit import settings, uploads_ahead
from bentos.kit.access import Caller, Guard
from bentos.kit.access.guard import ANYBODY
from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import Overloaded
from bentos.kit.front import CALLER
from pipelines.core.access import Credential
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.model_package import ModelPackage
from pipelines.core.pixelset import Pixels

NUM_FILES, FILE_BYTES = 20, 40_000


class Gated(Classifier):
    """A real classifier that answers nothing before it may."""

    def __init__(self, package: ModelPackage) -> None:
        super().__init__(package, provider="cpu")
        self.may = threading.Event()
        self.num_images = 0

    def predict_batch(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        assert self.may.wait(20)
        self.num_images += len(pixels_NHWC)
        return super().predict_batch(pixels_NHWC)


@dataclasses.dataclass(kw_only=True)
class Process:
    dataplane: Dataplane
    classifier: Gated


@pytest.fixture
def process(bento: Path, package: ModelPackage) -> Iterator[Process]:
    dataplane = Dataplane(dataclasses.replace(settings.load(bento / "src" / "model"), cache_bytes=0))
    dataplane.engine.close()
    classifier = Gated(package)
    dataplane.engine = Engine(classifier, threads=1, max_batch=4, max_waiting=256, max_wait_s=60.0)
    yield Process(dataplane=dataplane, classifier=classifier)
    classifier.may.set()
    dataplane.close()


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A little more than the files of one batch; at the end nothing of it is held."""
    number = NUM_FILES * FILE_BYTES + 200_000
    monkeypatch.setattr(IN_FLIGHT, "max_bytes", number)
    yield number
    assert (IN_FLIGHT.used, IN_FLIGHT.arriving) == (0, set())


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(NUM_FILES):
            image = coloured(COLOURS[number % 3], number)
            member = tarfile.TarInfo(str(number))
            member.size = FILE_BYTES
            archive.addfile(member, io.BytesIO(image + bytes(FILE_BYTES - len(image))))
    return file.getvalue()


class Client:
    """Sends a body, and reads its lines."""

    def __init__(self, process: Process, body: bytes, credential: Credential = ANYBODY, *, stays: bool = True) -> None:
        """Where it does not stay, it sends no more than this and waits for a sign to go."""
        self._pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
        self._stays = stays
        self.num_sent = 0
        self.leaves = asyncio.Event()
        self.received: list[Message] = []
        caller = Caller(credential=credential, request_id="batch", guard=Guard(required=False), authorization=None)
        app = SimpleNamespace(state=SimpleNamespace(dataplane=process.dataplane))
        scope = {"type": "http", "method": "POST", "headers": [], "query_string": b"", "path_params": {}, "app": app}
        self._request = Request(scope | {CALLER: caller}, self._receive)

    async def ask(self) -> list[dict[str, Any]]:
        """The lines. Raises what refuses the request."""
        response = await classify_batch(self._request)
        await response(self._request.scope, self._receive, self._send)
        return [json.loads(line) for message in self.received if (line := message.get("body"))]

    async def _receive(self) -> Message:
        await asyncio.sleep(0)  # as a socket would
        if self._pieces:
            self.num_sent += 1
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or not self._stays}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.received.append(message)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


def statuses(lines: list[dict[str, Any]]) -> list[int]:
    return [line.get("status", 200) for line in lines]


def test_files_are_counted_until_their_lines_are_answered(
    process: Process, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_ahead, "_PATIENCE_S", 0)

    async def work() -> None:
        client = Client(process, tar())
        asking = asyncio.create_task(client.ask())
        await until(lambda: IN_FLIGHT.used >= NUM_FILES * FILE_BYTES)
        assert IN_FLIGHT.used < budget
        process.classifier.may.set()
        lines = await asking
        assert [line["predictions"][0]["class_name"] for line in lines] == [COLOURS[n % 3] for n in range(NUM_FILES)]

    run(work())


def test_while_half_is_taken_a_batch_that_has_work_is_not_read_from(process: Process, budget: int) -> None:
    async def work() -> None:
        client = Client(process, tar())
        asking = asyncio.create_task(client.ask())
        await until(lambda: IN_FLIGHT.crowded)
        await asyncio.sleep(0.2)
        assert IN_FLIGHT.used < budget // 2 + FILE_BYTES + 65_536
        process.classifier.may.set()
        assert statuses(await asking) == [200] * NUM_FILES

    run(work())


def test_who_needs_the_room_takes_it_from_a_batch_which_says_so(
    process: Process, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is worked on is answered, and the last line tells where to go on."""
    monkeypatch.setattr(uploads_ahead, "_PATIENCE_S", 0)

    async def work() -> None:
        client = Client(process, tar())
        asking = asyncio.create_task(client.ask())
        await until(lambda: IN_FLIGHT.used >= NUM_FILES * FILE_BYTES)
        with IN_FLIGHT.growing(lambda: None) as small:
            small.grow(300_000)
            assert IN_FLIGHT.used < 300_000 + batch._AHEAD * (FILE_BYTES + 1000)
            process.classifier.may.set()
            *answered, last = await asking
        assert 1 <= len(answered) <= batch._AHEAD
        assert set(statuses(answered)) == {200}
        assert (last["status"], last["reason"], last["index"]) == (503, "overloaded", len(answered))

    run(work())


def test_batches_that_are_too_many_for_the_room_end_all(process: Process, budget: int) -> None:
    """Nobody waits for room that only he himself could give back."""

    async def work() -> None:
        asking = [asyncio.create_task(Client(process, tar()).ask()) for _ in range(4)]
        await until(lambda: IN_FLIGHT.crowded)
        process.classifier.may.set()
        for lines in await asyncio.gather(*asking):
            assert len(lines) == NUM_FILES or lines[-1]["reason"] == "overloaded"

    run(work())


def test_a_client_that_goes_takes_with_it_all_that_it_held(
    process: Process, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its body has come to its end or not, while its answers are being made."""
    monkeypatch.setattr(uploads_ahead, "_PATIENCE_S", 0)

    async def work() -> None:
        for stays in (True, False):
            client = Client(process, tar(), stays=stays)
            asking = asyncio.create_task(client.ask())
            await until(lambda: IN_FLIGHT.used >= NUM_FILES * FILE_BYTES)
            client.leaves.set()
            assert statuses(await asking) == []
            await until(lambda: not IN_FLIGHT.used)
        process.classifier.may.set()

    run(work())
    process.dataplane.engine.close()
    assert process.classifier.num_images <= 2  # what the thread had in its hands


def test_a_place_is_taken_before_a_byte_is_read(process: Process, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for one with his first file in hand, and one credential leaves places for others."""
    monkeypatch.setattr(batch, "PLACES", Places())
    header = tar()[:512]
    shop, bank, lab = (Credential(id=name, role="predictor") for name in ("shop", "bank", "lab"))

    async def work() -> None:
        clients = [Client(process, header, who, stays=False) for who in (shop, shop, bank, bank)]
        asking = [asyncio.create_task(client.ask()) for client in clients[:2]]
        await until(lambda: sum(client.num_sent for client in clients) == 2)
        third = Client(process, header, shop)
        with pytest.raises(Overloaded, match="2 batch requests of this credential") as caught:
            await third.ask()
        assert (caught.value.retry_after_s, third.num_sent) == (1, 0)
        asking += [asyncio.create_task(client.ask()) for client in clients[2:]]
        await until(lambda: sum(client.num_sent for client in clients) == 4)
        with pytest.raises(Overloaded, match="4 batch requests"):
            await Client(process, header, lab).ask()
        for client in clients:
            client.leaves.set()
        await asyncio.gather(*asking, return_exceptions=True)
        process.classifier.may.set()
        assert statuses(await Client(process, tar(), shop).ask()) == [200] * NUM_FILES

    run(work())


def test_who_cannot_be_told_apart_may_have_all_places() -> None:
    places = Places()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(places.taken(ANYBODY))
        with pytest.raises(Overloaded):
            stack.enter_context(places.taken(ANYBODY))
    with places.taken(ANYBODY):
        pass
