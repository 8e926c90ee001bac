"""A convolutional network, fp32 and int8, behind the gateway: one answer, by whatever transport, beside whatever else.

The cache is off, so that each answer is computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convolution_packages import write_convolution_package
from front_door import PATH, Door, front_door
from homes import settings_under
from numpy.typing import NDArray
from oip_client import ask_with_triton
from photographs import photograph
from serving_platform import ask
from websockets.sync.client import connect

from pipelines.adapters.packaging import build_bento
from pipelines.core.inference import Classifier

IMAGE = photograph(1000)
OTHERS = [photograph(number) for number in range(31)]
TOLERANCE = 1e-5
"""Of a probability, between batches of different sizes."""


@pytest.fixture(scope="module", params=["fp32", "int8"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp(request.param)
    package = write_convolution_package(folder / "package", request.param)
    bento = build_bento(package, version=7, out=folder / "bento")
    settings = replace(settings_under(folder / "home"), default_model="colours")
    variables = {"DARKROOM_CACHE_BYTES": "0", "DARKROOM_PROVIDER": "cpu", "DARKROOM_WEIGHTS": str(folder / "weights")}
    with front_door(settings, bento, package, **variables) as found:
        yield found


@pytest.fixture(scope="module")
def expected(network: Door) -> NDArray[np.float32]:
    """What evaluation says of the image alone."""
    classifier = Classifier(network.served.package, provider="cpu")
    found, other = (classifier.predict_bytes([image]).probabilities[0] for image in (IMAGE, OTHERS[0]))
    # A network that answers the same to every image would make everything below true.
    assert np.abs(found - other).max() > 1000 * TOLERANCE
    return found


def by_label(answer: dict[str, Any]) -> NDArray[np.float32]:
    listed = sorted(answer["predictions"], key=lambda one: one["label"])
    return np.array([one["probability"] for one in listed], np.float32)


def form(images: list[bytes]) -> tuple[bytes, dict[str, str]]:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = b"".join(head + image + b"\r\n" for image in images) + b"--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}


def by_batch(door: Door, images: list[bytes]) -> list[NDArray[np.float32]]:
    connection = HTTPConnection("127.0.0.1", door.port, timeout=30)
    try:
        connection.request("POST", f"{PATH}/batch", *form(images))
        return [by_label(json.loads(line)) for line in connection.getresponse().read().splitlines()]
    finally:
        connection.close()


def by_stream(door: Door, images: list[bytes]) -> list[NDArray[np.float32]]:
    with connect(f"ws://127.0.0.1:{door.port}/v1/models/colours/stream") as socket:
        for image in images:
            socket.send(image)
        return [by_label(json.loads(socket.recv(timeout=30))) for _ in images]


@pytest.mark.parametrize("num_images", [1, 7, 32])
def test_the_answer_to_an_image_is_the_same_by_every_transport_and_beside_any_others(
    network: Door, expected: NDArray[np.float32], tmp_path: Path, num_images: int
) -> None:
    """Alone it is the very same; beside others it is as near as sums in another order are."""
    place = num_images // 2
    images = [*OTHERS[:place], IMAGE, *OTHERS[place : num_images - 1]]
    port = network.port
    by_triton = ask_with_triton(images, http_port=port, grpc_port=port, model="colours", version="7", folder=tmp_path)
    assert len(by_triton) == 6
    found = {name: np.array(answer["probabilities"][place], np.float32) for name, answer in by_triton.items()}
    found["batch"] = by_batch(network, images)[place]
    found["stream"] = by_stream(network, images)[place]
    if num_images == 1:
        found["raw"] = by_label(ask(port, PATH, IMAGE)[1])
        found["form"] = by_label(ask(port, PATH, *form([IMAGE]))[1])
    bound = TOLERANCE if num_images > 1 else 0.0
    assert {
        name: difference for name, one in found.items() if (difference := np.abs(one - expected).max()) > bound
    } == {}


def test_its_weights_are_those_that_other_processes_share(network: Door) -> None:
    """All of this was answered with them, and compared with a session that has its own."""
    (made,) = (network.served.bento.parent / "weights").iterdir()
    mapped = str(made / "weights.bin") in Path(f"/proc/{network.served.pid}/maps").read_text()
    # int8's are reordered when the session opens, and the file is let go of.
    assert mapped == (network.served.package.variant == "fp32")


def test_nothing_of_it_came_from_memory(network: Door) -> None:
    connection = HTTPConnection("127.0.0.1", network.served.port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    assert 'darkroom_cache_lookups_total{level="memory",result="hit"} 0.0' in text
