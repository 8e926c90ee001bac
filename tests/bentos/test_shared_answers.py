"""Answers that processes share through a real Redis; the processes are caches in one event loop here."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from example_packages import COLOURS, write_package
from redis_server import RedisProcess, running_redis

from bentos.classifier.answers import AnswerCodec, Answers, made_by
from bentos.classifier.prediction_log import Asker
from bentos.kit.shared import cache
from bentos.kit.shared.cache import SharedCache
from bentos.kit.shared.server import RedisServer
from bentos.kit.telemetry import REGISTRY
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.model_package import ModelPackage

CODEC = AnswerCodec(num_classes=3, embedding_dim=5)
ANNA, BERT = Asker("anna", "1"), Asker("bert", "2")
IMAGE = b"i" * 32


def outputs(seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    logits, probabilities, embedding = (random.random((1, width), np.float32) for width in (3, 3, 5))
    return Outputs(logits=logits, probabilities=probabilities, embedding=embedding)


def same(first: Outputs | None, second: Outputs | None) -> bool:
    assert first is not None
    assert second is not None
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    return all(one.dtype == other.dtype and one.tobytes() == other.tobytes() for one, other in pairs)


# --- the form --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_bit_by_bit() -> None:
    given = outputs()
    given.logits[0, 0] = np.float32("nan")
    given.embedding[0, :2] = (np.float32("-0.0"), np.float32("1e-45"))
    data = CODEC.encode("key", given)
    assert len(data) == CODEC.num_bytes
    found = CODEC.decode("key", data)
    assert same(found, given)
    assert found is not None
    assert [part.shape for part in dataclasses.astuple(found)] == [(1, 3), (1, 3), (1, 5)]


def test_every_changed_byte_is_noticed() -> None:
    data = CODEC.encode("key", outputs())
    for place in range(len(data)):
        assert CODEC.decode("key", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None
    for wrong in (b"", data[:-1], data + b"\0", data[1:], bytes(len(data))):
        assert CODEC.decode("key", wrong) is None


def test_a_value_belongs_to_its_key_and_its_form() -> None:
    data = CODEC.encode("key", outputs())
    assert CODEC.decode("another", data) is None
    # As many bytes, and of another model.
    assert AnswerCodec(num_classes=4, embedding_dim=3).decode("key", data) is None


def test_what_made_an_answer_is_in_its_key(tmp_path: Path) -> None:
    package = write_package(tmp_path / "one")
    one = Classifier(package)
    found = {made_by(one), made_by(Classifier(write_package(tmp_path / "two", temperature=2.0)))}
    squashing = dataclasses.replace(package.preprocessing, fit="squash")
    for change in ({"variant": "int8"}, {"package": dataclasses.replace(package, preprocessing=squashing)}):
        other = Classifier(package)
        vars(other).update(change)
        found.add(made_by(other))
    other = Classifier(package)
    other._runtime.provider = "cuda"
    found.add(made_by(other))
    assert len(found) == 5
    assert made_by(Classifier(package)) == made_by(one)


# --- two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests makes no answer late."""
    monkeypatch.setattr(cache, "READ_S", 5.0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(write_package(tmp_path_factory.mktemp("package") / "package"))


class Process:
    def __init__(self, redis: RedisProcess, classifier: Classifier, ttl_s: int = 60) -> None:
        self.server = RedisServer(redis.url_file)
        self.shared = SharedCache(self.server, CODEC, ttl_s=ttl_s)
        self.answers = Answers(1_000_000, self.shared, classifier)


Work = Callable[[Process, Process], Awaitable[None]]


def with_two(redis: RedisProcess, classifier: Classifier, work: Work, ttl_s: int = 60) -> None:
    async def run() -> None:
        first, second = (Process(redis, classifier, ttl_s) for _ in range(2))
        for one in (first, second):
            await one.server.open()
        try:
            await work(first, second)
        finally:
            for one in (first, second):
                await one.answers.settle()
                await one.server.close()

    asyncio.run(run())


def lookups(result: str) -> float:
    return REGISTRY.get_sample_value("darkroom_cache_lookups_total", {"level": "redis", "result": result}) or 0.0


def test_what_one_keeps_another_finds_for_the_same_asker(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        hits, misses = lookups("hit"), lookups("miss")
        first.answers.keep(ANNA, IMAGE, outputs())
        await first.answers.settle()
        assert same(await second.answers.find(ANNA._replace(request_id="other"), IMAGE), outputs())
        assert await second.answers.find(BERT, IMAGE) is None
        assert await second.answers.find(ANNA, b"j" * 32) is None
        assert (lookups("hit") - hits, lookups("miss") - misses) == (1, 2)
        assert same(await second.answers.find(ANNA, IMAGE), outputs())  # from memory now
        assert lookups("hit") - hits == 1

    with_two(redis, classifier, work)


def test_other_packages_are_other_keys(redis: RedisProcess, classifier: Classifier, tmp_path: Path) -> None:
    async def work(first: Process, second: Process) -> None:
        first.answers.keep(ANNA, IMAGE, outputs())
        await first.answers.settle()
        newer = Classifier(write_package(tmp_path / "newer", temperature=3.0))
        assert await Answers(1_000_000, second.shared, newer).find(ANNA, IMAGE) is None

    with_two(redis, classifier, work)


def test_who_proves_a_process_gets_its_own_answers(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        for proof in (Asker("platform", "1"), Asker("anonymous", "golden-set")):
            first.answers.keep(proof, IMAGE, outputs())
            await first.answers.settle()
            assert await second.answers.find(proof, IMAGE) is None
        # Nor do they get what others were answered.
        first.answers.keep(Asker("anonymous", "1"), IMAGE, outputs())
        await first.answers.settle()
        assert await second.answers.find(Asker("anonymous", "golden-set"), IMAGE) is None

    with_two(redis, classifier, work)


@pytest.mark.parametrize("spoil", ["junk", "cut", "another's", "list"])
def test_what_is_no_answer_is_a_miss_and_is_replaced(redis: RedisProcess, classifier: Classifier, spoil: str) -> None:
    async def work(first: Process, second: Process) -> None:
        other = b"o" * 32
        first.answers.keep(ANNA, IMAGE, outputs(1))
        first.answers.keep(ANNA, other, outputs(2))
        await first.answers.settle()
        key, other_key = (first.answers._key(ANNA, image) for image in (IMAGE, other))
        good, others = (await first.server.ask([("MGET", key, other_key)]))[0]
        if spoil == "list":
            await first.server.ask([("DEL", key), ("RPUSH", key, "x")])
        else:
            bad = {"junk": b"\x80\x04K\x01.", "cut": good[:-4], "another's": others}[spoil]
            await first.server.ask([("SET", key, bad)])
        wrong, misses = lookups("wrong"), lookups("miss")
        assert await second.answers.find(ANNA, IMAGE) is None
        assert (lookups("wrong") - wrong, lookups("miss") - misses) == ((0, 1) if spoil == "list" else (1, 0))
        second.answers.keep(ANNA, IMAGE, outputs(1))
        await second.answers.settle()
        assert await first.server.ask([("GET", key)]) == [good]

    with_two(redis, classifier, work)


def test_answers_have_an_end_and_names_tell_nothing(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        first.answers.keep(ANNA, IMAGE, outputs())
        await first.answers.settle()
        keys, seconds = await first.server.ask([("KEYS", "*answer*"), ("TTL", first.answers._key(ANNA, IMAGE))])
        assert 0 < seconds <= 7
        assert len(keys) == 1
        assert not any(word in keys[0] for word in (b"anna", IMAGE.hex().encode()))

    with_two(redis, classifier, work, ttl_s=7)


def test_many_questions_at_once_go_together(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        images = [bytes([number]) * 32 for number in range(100)]
        for number, image in enumerate(images):
            first.answers.keep(ANNA, image, outputs(number))
        await first.answers.settle()
        found = await asyncio.gather(*(second.answers.find(ANNA, image) for image in images))
        assert all(same(one, outputs(number)) for number, one in enumerate(found))
        (said,) = await first.server.ask([("INFO", "commandstats")])
        assert b"cmdstat_mget:calls=2," in said

    with_two(redis, classifier, work)


def test_a_redis_that_hangs_costs_little_and_soon_nothing(
    redis: RedisProcess, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "READ_S", 0.02)

    async def work(first: Process, second: Process) -> None:
        late = lookups("late")
        redis.hang()
        try:
            for number in range(50):
                assert await first.answers.find(ANNA, bytes([number]) * 32) is None
                first.answers.keep(ANNA, bytes([number]) * 32, outputs())
            assert lookups("late") - late == 5  # waits of 20 ms, and not fifty
            await first.answers.settle()
        finally:
            redis.wake()

    with_two(redis, classifier, work)


def test_without_redis_there_is_memory(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        redis.kill()
        for _ in range(2):
            assert await first.answers.find(ANNA, IMAGE) is None
        first.answers.keep(ANNA, IMAGE, outputs())
        assert same(await first.answers.find(ANNA, IMAGE), outputs())

    with_two(redis, classifier, work)


def test_a_request_that_is_given_up_harms_no_other(redis: RedisProcess, classifier: Classifier) -> None:
    async def work(first: Process, second: Process) -> None:
        first.answers.keep(ANNA, IMAGE, outputs())
        await first.answers.settle()
        tasks = [asyncio.create_task(second.answers.find(ANNA, IMAGE)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(same(one, outputs()) for one in found[1:])  # type: ignore[arg-type]

    with_two(redis, classifier, work)


def test_the_example_has_what_the_codec_of_its_model_expects(package: ModelPackage) -> None:
    found = Classifier(package).predict_bytes([package.read(package.golden[0].file)])
    codec = AnswerCodec(num_classes=len(COLOURS), embedding_dim=3)
    assert same(codec.decode("key", codec.encode("key", found)), found)
