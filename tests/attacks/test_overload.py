"""More requests than a process can answer: those it takes are answered soon, the others are told so at once."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from bench.serving import workload
from bench.serving.load import Load, Running, send
from bench.serving.servers import Server
from front_door import PATH, Door, front_door
from homes import settings_under
from PIL import Image

from pipelines.core.model_package import ModelPackage

SECONDS = 6.0
TIMES_CAPACITY = 3
LATENCY_MS = 1500
"""Of what is taken: 200 ms of waiting and a batch on a machine that does nothing else, and room for one that does.
Without a limit a request would wait for two thirds of SECONDS.
"""


def drawn(seed: int) -> bytes:
    """An image that takes some 10 ms to decode; another one for each seed."""
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000), (200, 40, seed)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def batch(door: Door, images: list[bytes]) -> list[int]:
    """The statuses of a batch's lines."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, image in enumerate(images):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(image)
            archive.addfile(entry, io.BytesIO(image))
    connection = HTTPConnection("127.0.0.1", door.port, timeout=60)
    try:
        connection.request("POST", f"{PATH}/batch", file.getvalue())
        lines = connection.getresponse().read().splitlines()
    finally:
        connection.close()
    return [json.loads(line).get("status", 200) for line in lines]


@pytest.mark.heavy
def test_what_is_taken_is_answered_soon_and_the_rest_is_refused_at_once(
    bento: Path, package: ModelPackage, tmp_path: Path
) -> None:
    """Strangers come at three times the rate that one thread can answer, and a batch beside them gets on too."""
    files = [tmp_path / f"{seed}.png" for seed in range(8)]
    for seed, file in enumerate(files):
        file.write_bytes(drawn(seed))
    settings = replace(settings_under(tmp_path / "home"), default_model="colours")
    one_thread = {"DARKROOM_CONCURRENCY": "1", "DARKROOM_CACHE_BYTES": "0"}
    with front_door(settings, bento, package, **one_thread) as door:
        server = Server(
            name="gateway", port=door.port, pids={"worker": door.served.pid}, log=door.served.log, path=PATH
        )
        closed = Load(files=files, order=range(len(files)), connections=4, seconds=2)
        capacity = send(server, closed).per_s
        arrivals = workload.poisson(TIMES_CAPACITY * capacity, SECONDS)
        crowd = replace(closed, connections=256, seconds=0.0, arrivals=arrivals, expected=(200, 503))
        running = Running(server, crowd)
        try:
            assert batch(door, [drawn(seed) for seed in range(20)]) == [200] * 20
            assert not running.ended(0)
            found = running.finish()
        finally:
            running.stop()
    taken, refused = found.latencies_ms_of(200), found.latencies_ms_of(503)
    assert len(refused) > 0.4 * found.requests
    assert len(taken) > 0.5 * SECONDS * capacity  # refusing leaves time to answer
    assert np.percentile(taken, 99) < LATENCY_MS
    assert np.percentile(refused, 50) < np.percentile(taken, 50)
