"""How requests become batches."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from example_packages import COLOURS, coloured
from slow_classifier import Slow

from bentos.classifier.engine import Engine
from bentos.kit.errors import Overloaded
from bentos.kit.tracing import CURRENT, Span, Tracer
from pipelines.core.errors import ImageError
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.model_package import ModelPackage


@contextmanager
def engine(classifier: Classifier, **options: float) -> Iterator[Engine]:
    given = {"threads": 1, "max_batch": 32, "max_waiting": 256, "max_wait_s": 60.0, **options}
    running = Engine(classifier, **given)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        running.close()


def images(number: int) -> list[bytes]:
    return [coloured(COLOURS[place % 3], place) for place in range(number)]


def test_one_after_another_each_is_computed_alone(package: ModelPackage) -> None:
    classifier = Slow(package)
    expected = Classifier(package).predict_bytes(images(5)).probabilities

    async def work(running: Engine) -> list[Outputs]:
        return [await running.run([image]) for image in images(5)]

    with engine(classifier) as running:
        found = asyncio.run(work(running))
    assert classifier.sizes == [1] * 5
    assert np.allclose(np.concatenate([one.probabilities for one in found]), expected, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_waits_is_computed_together_and_answered_to_whom_it_belongs(package: ModelPackage, threads: int) -> None:
    classifier = Slow(package, 0.001)
    expected = Classifier(package).predict_bytes(images(60)).probabilities

    async def work(running: Engine) -> list[Outputs]:
        await running.run([images(1)[0]])  # it learns how long an image takes
        return await asyncio.gather(*(running.run([image]) for image in images(60)))

    with engine(classifier, threads=threads) as running:
        found = asyncio.run(work(running))
    assert sum(classifier.sizes) == 61
    assert len(classifier.sizes) < 30
    assert max(classifier.sizes) > 4
    assert np.allclose(np.concatenate([one.probabilities for one in found]), expected, atol=1e-6)


def test_a_batch_is_no_longer_than_others_should_wait(package: ModelPackage) -> None:
    classifier = Slow(package, 0.02)

    async def work(running: Engine) -> None:
        await asyncio.gather(*(running.run([image]) for image in images(12)))

    with engine(classifier) as running:
        asyncio.run(work(running))
    assert classifier.sizes == [1] * 12


def test_one_bad_image_spoils_only_its_own_request(package: ModelPackage) -> None:
    async def work(running: Engine) -> list[Outputs | BaseException]:
        requests = [[images(1)[0]], [b"no image"], images(3), [images(1)[0], b"no image"], images(2)]
        return await asyncio.gather(*(running.run(one) for one in requests), return_exceptions=True)

    with engine(Slow(package, 0.001)) as running:
        found = asyncio.run(work(running))
    assert [len(one.logits) if isinstance(one, Outputs) else type(one) for one in found] == [
        1,
        ImageError,
        3,
        ImageError,
        2,
    ]
    assert "image 1" in str(found[3])
    assert "image" not in str(found[1]).split(":", maxsplit=1)[0]


def test_stages_of_a_batch_are_told_to_the_traces_of_those_in_it(package: ModelPackage) -> None:
    """To each its own wait and its own decoding; the model's time and size are the batch's."""
    taken: list[Span] = []
    tracer = Tracer(sample=1, attributes={}, take=taken.append)

    async def traced(running: Engine, image: bytes) -> Span:
        span = tracer.begin(b"", time.perf_counter())
        CURRENT.set(span)
        await asyncio.gather(running.run([image]), return_exceptions=True)
        assert span is not None
        return span

    async def work(running: Engine) -> list[Span]:
        await running.run(images(10))  # it learns how long an image takes
        busy = asyncio.create_task(running.run(images(20)))
        spans = await asyncio.gather(*(traced(running, one) for one in (images(1)[0], b"no image", images(2)[1])))
        await busy
        return spans

    classifier = Slow(package, 0.001)
    classifier.predict_bytes(images(1))  # the first run allocates
    with engine(classifier) as running:
        spans = asyncio.run(work(running))
    told = [[(one.name, one.failed) for one in taken if one.parent_id == span.span_id] for span in spans]
    assert told[0] == told[2] == [("queue", False), ("decode", False), ("model", False)]
    assert told[1] == [("queue", False), ("decode", True)]
    assert [one.attributes["darkroom.images"] for one in taken if one.name == "decode"] == [1, 1, 1]
    models = [one for one in taken if one.name == "model"]
    assert len({(one.started, one.ended) for one in models}) == 1
    assert {one.attributes["darkroom.batch_images"] for one in models} == {3}


def test_a_failing_runtime_fails_requests_and_not_the_thread(package: ModelPackage) -> None:
    classifier = Slow(package)

    async def work(running: Engine) -> Outputs:
        classifier.fails = True
        with pytest.raises(RuntimeError, match="the runtime failed"):
            await running.run(images(1))
        classifier.fails = False
        return await running.run(images(1))

    with engine(classifier) as running:
        assert len(asyncio.run(work(running)).logits) == 1


def test_who_would_wait_too_long_is_not_admitted(package: ModelPackage) -> None:
    classifier = Slow(package, 0.05)

    async def work(running: Engine) -> None:
        running.admit()  # nobody waits
        await running.run(images(1))  # it learns how long an image takes
        waiting = [asyncio.create_task(running.run([image])) for image in images(22)]  # 1.1 s, or less than twice that
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            running.admit()
        began = time.perf_counter()
        assert caught.value.retry_after_s == math.ceil(running.wait_s()) == 2
        await running.room()
        assert 0.5 < time.perf_counter() - began < caught.value.retry_after_s  # whoever comes back then is let in
        await asyncio.gather(*waiting)

    with engine(classifier, max_wait_s=0.1) as running:
        asyncio.run(work(running))


def test_a_few_images_may_wait_however_slow_the_model_is(package: ModelPackage) -> None:
    """A thread that is free, and a line as short as chance makes it in normal service, are no overload."""
    classifier = Slow(package, 0.1)

    async def work(running: Engine) -> None:
        await running.run(images(1))
        waiting = []
        for image in images(8):
            running.admit()
            waiting.append(asyncio.create_task(running.run([image])))
            await asyncio.sleep(0)
        assert running.wait_s() > 0.5
        with pytest.raises(Overloaded):
            running.admit()
        await asyncio.gather(*waiting)

    with engine(classifier, max_wait_s=0.001) as running:
        asyncio.run(work(running))


def test_a_request_of_many_images_gets_in_where_one_of_a_single_image_does(package: ModelPackage) -> None:
    async def work(running: Engine) -> None:
        waiting = [asyncio.create_task(running.run([image])) for image in images(4)]
        await asyncio.sleep(0)
        running.admit()
        waiting.append(asyncio.create_task(running.run(images(3))))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            running.admit()
        await asyncio.gather(*waiting)

    with engine(Slow(package, 0.05), max_waiting=5) as running:
        asyncio.run(work(running))


def test_what_nobody_waits_for_any_more_is_not_computed(package: ModelPackage) -> None:
    classifier = Slow(package, 1.5)  # on a busy machine two thousand requests take as long to come and go

    async def work(running: Engine) -> None:
        many = images(3) * 700
        first = asyncio.create_task(running.run(images(1)))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(running.run([image])) for image in many]
        await asyncio.sleep(0.01)
        for other in others:
            other.cancel()
        await asyncio.gather(first, *others, return_exceptions=True)
        await running.run(images(1))
        assert running.wait_s() == 0

    with engine(classifier) as running:
        asyncio.run(work(running))
    assert classifier.sizes == [1, 1]


def test_closing_ends_the_threads(package: ModelPackage) -> None:
    with engine(Slow(package), threads=3):
        assert sum(thread.name.startswith("engine-") for thread in threading.enumerate()) >= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
