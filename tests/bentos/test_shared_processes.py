"""Two real serving processes behind one limit and one shared cache, by every transport, and Redis killed under load."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from example_packages import coloured, write_package
from redis_server import RedisProcess, running_redis
from served_bento import Served, serve
from serving_platform import ask, in_own_schema, wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bentos.classifier.oip import inference_pb2
from pipelines.adapters import database
from pipelines.adapters.packaging import build_bento
from pipelines.core.access import new_key
from pipelines.core.model_package import ModelPackage
from pipelines.settings import SERVING_ROLE, Settings

PATH = "/v1/classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(kw_only=True)
class House:
    """Two processes of a deployment, what they share, and who may ask."""

    served: tuple[Served, Served]
    redis: RedisProcess
    url: str
    operator: dict[str, str]
    variables: Mapping[str, str]

    def make(self, name: str, **grant: object) -> dict[str, str]:
        key = new_key()
        given = database.Grant(name=name, **{"role": "predictor", **grant})  # type: ignore[arg-type]
        database.create_key(self.url, key, given, actor="test")
        return {"Authorization": f"Bearer {key}"}

    def metric(self, served: Served, name: str) -> float:
        connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers=self.operator)
            text = connection.getresponse().read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def lookups(self, served: Served, level: str, result: str) -> float:
        return self.metric(served, f'darkroom_cache_lookups_total{{level="{level}",result="{result}"}}')

    def runs(self, served: Served) -> float:
        """Images that went through its model."""
        return self.metric(served, "darkroom_batch_images_sum")

    def up(self, served: Served) -> float:
        return self.metric(served, 'darkroom_backend_up{backend="redis"}')

    def written(self, served: Served) -> float:
        return self.metric(served, 'darkroom_shared_answers_total{result="written"}')


@pytest.fixture(scope="module")
def house(
    bento: Path, package: ModelPackage, postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("shared")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder / "redis"))
        url = in_own_schema(postgres_settings)
        database.migrate(url)
        database.allow_serving(url, SERVING_ROLE)
        (folder / "url").write_text(postgres_settings.serving_database_url + "?" + url.partition("?")[2])
        variables = {
            "DARKROOM_AUTH": "required",
            "DARKROOM_KEYS_URL_FILE": str(folder / "url"),
            "DARKROOM_PROCESSES": "2",
            "DARKROOM_REDIS_URL_FILE": str(redis.url_file),
        }
        first, second = (stack.enter_context(serve(bento, package, **variables)) for _ in range(2))
        found = House(served=(first, second), redis=redis, url=url, operator={}, variables=variables)
        found.operator = found.make("watcher", role="operator")
        yield found


@dataclass
class Client:
    """Asks one process as fast as it answers, with a few connections."""

    served: Served
    header: Mapping[str, str]
    statuses: list[int] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)

    def work(self, seconds: float, images: list[bytes]) -> None:
        connection = HTTPConnection("127.0.0.1", self.served.port, timeout=30)
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            connection.request("POST", PATH, images[number % len(images)], dict(self.header))
            response = connection.getresponse()
            response.read()
            self.statuses.append(response.status)
            if response.status == 429:
                self.retry_after_s.append(int(response.headers["Retry-After"]))
            number += 1
        connection.close()


def test_two_processes_give_what_one_limit_allows(house: House) -> None:
    """600 a minute: a bucket of 100 and ten a second, and not one for each of them."""
    header = house.make("busy", per_minute=600)
    clients = [Client(served, header) for served in house.served for _ in range(3)]
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as threads:
        for client in clients:
            threads.submit(client.work, 4.0, [coloured("red", 1)])
    flown = 10 * (time.monotonic() - began)
    given = [sum(client.statuses.count(200) for client in clients if client.served is one) for one in house.served]
    assert {status for client in clients for status in client.statuses} == {200, 429}
    assert 100 + flown - 4 <= sum(given) <= 100 + flown + 5
    assert min(given) > 10
    assert {one for client in clients for one in client.retry_after_s} == {1}


def test_a_process_that_nobody_asks_holds_nothing(house: House) -> None:
    header = house.make("one-sided", per_minute=600)
    served = house.served[0]
    began = time.monotonic()
    given = 0
    while ask(served.port, PATH, coloured("red", 1), header)[0] == 200:
        given += 1
    assert 100 <= given <= 100 + 10 * (time.monotonic() - began) + 3


def test_what_one_gave_the_other_refuses_by_every_transport(house: House) -> None:
    header = house.make("once", per_minute=1)
    first, second = house.served
    assert ask(first.port, PATH, coloured("red", 1), header)[0] == 200
    connection = HTTPConnection("127.0.0.1", second.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", PATH, coloured("red", 1), header)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["reason"]) == (429, "too_many_requests")
        assert 55 <= int(response.headers["Retry-After"]) <= 60
    with grpc.insecure_channel(f"127.0.0.1:{second.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(INFER)(b"", metadata=[("authorization", header["Authorization"])], timeout=10)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 50 <= int(dict(refused.value.trailing_metadata())["retry-after"]) <= 60
    with pytest.raises(InvalidStatus) as denied:
        connect(f"ws://127.0.0.1:{second.port}/v1/stream", additional_headers=header)
    assert denied.value.response.status_code == 429
    assert 50 <= int(denied.value.response.headers["Retry-After"]) <= 60


def batch(served: Served, header: Mapping[str, str], *, num_images: int) -> list[dict[str, Any]]:
    """The lines that are answered to a form of images."""
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="one.png"\r\n\r\n'
    form = b"".join(head + coloured("red", number) + b"\r\n" for number in range(num_images)) + b"--edge--\r\n"
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    with contextlib.closing(connection):
        headers = {**header, "Content-Type": "multipart/form-data; boundary=edge"}
        connection.request("POST", f"{PATH}/batch", form, headers)
        return [json.loads(line) for line in connection.getresponse().read().splitlines()]


def test_frames_batches_and_tensors_count_too(house: House) -> None:
    first, second = house.served
    frames = house.make("frames", per_minute=12)  # a bucket of two
    with connect(f"ws://127.0.0.1:{first.port}/v1/stream", additional_headers=frames) as socket:
        answers = []
        for _ in range(4):
            socket.send(coloured("red", 1))
            answers.append(json.loads(socket.recv(timeout=10)))
    assert [one.get("status", 200) for one in answers] == [200, 200, 429, 429]
    assert all(1 <= one["retry_after_s"] <= 5 for one in answers[2:])  # one image in five seconds
    assert ask(second.port, PATH, coloured("red", 1), frames)[0] == 429
    lines = batch(first, house.make("lines", per_minute=12), num_images=4)
    assert [one.get("status", 200) for one in lines] == [200, 200, 429, 429]
    assert all(1 <= one["retry_after_s"] <= 5 for one in lines[2:])
    tensors = house.make("tensors", per_minute=12)
    message = inference_pb2.ModelInferRequest(model_name="colours")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[6])
    tensor.contents.bytes_contents.extend([coloured("red", number) for number in range(6)])
    with grpc.insecure_channel(f"127.0.0.1:{first.grpc_port}") as channel:
        metadata = [("authorization", tensors["Authorization"])]
        channel.unary_unary(INFER)(message.SerializeToString(), metadata=metadata, timeout=10)
    status, answer = ask(second.port, PATH, coloured("red", 1), tensors)
    assert (status, answer["reason"]) == (429, "too_many_requests")


def test_what_one_has_answered_the_other_need_not(house: House) -> None:
    second = house.served[1]
    anna, bert = house.make("anna"), house.make("bert")
    found = []
    images = (coloured("green", number) for number in itertools.count(311))
    for _ in range(5):
        image, answer = answered_and_written(house, images, anna)
        hits, runs = house.lookups(second, "redis", "hit"), house.runs(second)
        assert ask(second.port, f"{PATH}?top_k=3", image, anna)[1]["predictions"] == answer["predictions"]
        # On a busy machine Redis may be late, and then the model runs.
        found.append(house.lookups(second, "redis", "hit") - hits == 1)
        assert house.runs(second) - runs == (not found[-1])
        embeddings = [ask(one.port, "/v1/embed", image, anna)[1]["embedding"] for one in house.served]
        assert embeddings[0] == embeddings[1]
        runs = house.runs(second)
        ask(second.port, PATH, image, bert)
        assert house.runs(second) == runs + 1
    assert any(found)
    assert house.lookups(second, "redis", "wrong") == 0


def answered_and_written(house: House, images: Iterator[bytes], header: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
    """The first of some images whose answer by the first process came into Redis, which may be late for others."""
    first = house.served[0]
    for image in itertools.islice(images, 10):
        written = house.written(first)
        answer = ask(first.port, f"{PATH}?top_k=3", image, header)[1]
        with contextlib.suppress(AssertionError):
            wait_until(lambda before=written: house.written(first) == before + 1, timeout_s=3)  # type: ignore[misc]
            return image, answer
    raise AssertionError("ten answers, and none came into Redis")


def test_another_package_shares_nothing(house: House, tmp_path: Path) -> None:
    header = house.make("carla")
    image, _ = answered_and_written(house, (coloured("blue", number) for number in itertools.count(312)), header)
    newer = write_package(tmp_path / "package", temperature=2.0)
    with serve(build_bento(newer, version=8, out=tmp_path / "bento"), newer, **house.variables) as served:
        runs = house.runs(served)
        assert ask(served.port, PATH, image, header)[1]["package_digest"] == newer.digest
        assert house.lookups(served, "redis", "hit") == 0
        assert house.runs(served) == runs + 1


def test_killed_under_load_it_costs_no_request(house: House) -> None:
    """Requests of somebody with a rate that they stay below, and of images that nobody has seen: both go to Redis."""
    header = house.make("steady", per_minute=600_000)
    images = [coloured("red", number) for number in range(1000, 1400)]
    clients = [Client(served, header) for served in house.served]
    threads = [threading.Thread(target=one.work, args=(6.0, images[start::2])) for start, one in enumerate(clients)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    house.redis.kill()
    wait_until(lambda: [house.up(served) for served in house.served] == [0, 0])
    house.redis.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: [house.up(served) for served in house.served] == [1, 1])
    statuses = [status for client in clients for status in client.statuses]
    assert len(statuses) > 100
    assert set(statuses) == {200}
    for served in house.served:
        log = served.log.read_text()
        lines = [json.loads(line) for line in log.splitlines() if '"darkroom.redis"' in line]
        assert [line["event"].partition(":")[0] for line in lines] == ["Redis is away", "Redis is back"]
        assert f":{house.redis.port}" not in log
    again = house.make("again", per_minute=1)
    assert [ask(served.port, PATH, coloured("red", 1), again)[0] for served in house.served] == [200, 429]


def test_a_process_begins_without_redis(house: House, bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:secret-word@127.0.0.1:1/0")
    variables = {**house.variables, "DARKROOM_REDIS_URL_FILE": str(tmp_path / "url")}
    with serve(bento, package, **variables) as served:
        header = house.make("alone", per_minute=60)
        assert [ask(served.port, PATH, coloured("red", 1), header)[0] for _ in range(6)] == [200] * 5 + [429]
        assert house.up(served) == 0
        assert "secret-word" not in served.log.read_text()
        assert "Redis is away" in served.log.read_text()
