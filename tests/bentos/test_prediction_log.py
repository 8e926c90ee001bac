"""Answers of a real serving process, found again in the store as they were given."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from example_packages import COLOURS, SIDE, coloured
from served_bento import environment, serve
from serving_platform import ask, wait_until
from websockets.sync.client import connect

from bentos.classifier.identity import Identity
from bentos.classifier.prediction_log import Asker, PredictionLog
from bentos.kit import settings as kit_settings
from bentos.kit.settings import PredictionLogSettings
from bentos.kit.telemetry import REGISTRY
from pipelines.core import prediction_spool, predictions
from pipelines.core.errors import UserError
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.model_package import ModelPackage
from pipelines.core.prediction_collection import collect
from pipelines.core.prediction_spool import Record
from pipelines.core.storage import LocalStorage

IDENTITY = Identity(model_name="colours", model_version="7", package_digest="a" * 64)


def variables(spool: Path, share: str = "1", **others: str) -> dict[str, str]:
    return {"DARKROOM_LOG_PREDICTIONS": share, "DARKROOM_PREDICTION_SPOOL": str(spool), **others}


def stored(spool: Path, storage: LocalStorage) -> dict[tuple[str, int], dict[str, Any]]:
    """All rows, by request and place."""
    collect(spool, storage)
    rows = [row for batch in predictions.read(storage) for row in batch.to_pylist()]
    found = {(row["request_id"], row["image_index"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def spooled(spool: Path) -> list[Record]:
    files = prediction_spool.files(spool) if spool.exists() else []
    return [one for path in files for one in prediction_spool.parse(path.read_bytes()).records]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


# --- what is logged ------------------------------------------------------------------------------------------------


def test_every_transports_answers_are_in_the_store_as_they_were_given(
    bento: Path, package: ModelPackage, spool: Path, storage: LocalStorage
) -> None:
    images = [coloured(COLOURS[number % 3], number, side=SIDE + number) for number in range(4)]
    pixels = np.arange(2 * SIDE * SIDE * 3, dtype=np.uint8).reshape(2, SIDE, SIDE, 3)
    with serve(bento, package, **variables(spool)) as served:

        def post(path: str, body: bytes, request_id: str, **headers: str) -> dict[str, Any]:
            given = {"X-Request-ID": request_id, **{name.replace("_", "-"): value for name, value in headers.items()}}
            status, answer = ask(served.port, path, body, given)
            assert status == 200, answer
            return answer

        first = post("/v1/classify?top_k=3", images[0], "one")
        post("/v1/classify?top_k=1", images[0], "again")
        embedded = post("/v1/embed", images[1], "embedded")
        lines = _lines(served.port, _form([*images, b"no image"]))
        inferred = post("/v2/models/colours/infer", _oip("image", images[:2]), "several")
        post("/v2/models/colours/infer", _oip_pixels(pixels), "pixels")
        with connect(f"ws://127.0.0.1:{served.port}/v1/stream", additional_headers={"X-Request-ID": "ws"}) as socket:
            for image in images[:2]:
                socket.send(image)
            assert [json.loads(socket.recv(timeout=20))["request_id"] for _ in range(2)] == ["ws/0", "ws/1"]
        assert ask(served.port, "/v1/classify", b"no image")[0] == 415
        wait_until(lambda: len(spooled(spool)) == 13)
        metrics = _metrics(served.port)
        assert metrics["darkroom_logged_predictions_total"] == 13
        maps = Path(f"/proc/{served.pid}/maps").read_text()
        assert "pyarrow" not in maps
    found = stored(spool, storage)
    assert set(found) == {
        *((name, 0) for name in ("one", "again", "embedded", "ws/0", "ws/1")),
        *(("batch", number) for number in range(4)),
        *((name, number) for name in ("several", "pixels") for number in range(2)),
    }
    _check(found["one", 0], package, images[0])
    assert found["one", 0]["probabilities"] == [
        one["probability"] for one in sorted(first["predictions"], key=lambda one: one["label"])
    ]
    assert (found["one", 0]["cached"], found["again", 0]["cached"]) == (False, True)
    assert found["again", 0]["probabilities"] == found["one", 0]["probabilities"]
    assert found["embedded", 0]["embedding"] == embedded["embedding"]
    for number, line in enumerate(lines[:4]):
        _check(found["batch", number], package, images[number])
        assert found["batch", number]["class_name"] == line["predictions"][0]["class_name"]
    table = {one["name"]: one["data"] for one in inferred["outputs"]}
    logged = [found["several", number]["probabilities"] for number in range(2)]
    assert np.array_equal(np.array(logged, np.float32).ravel(), np.array(table["probabilities"], np.float32).ravel())
    for number in range(2):
        row = found["pixels", number]
        expected = hashlib.sha256(pixels[number].tobytes()).hexdigest()
        assert (row["input"], row["image_sha256"], row["image_width"]) == ("pixels", expected, None)
        _check(found[f"ws/{number}", 0], package, images[number])


def _check(row: Mapping[str, Any], package: ModelPackage, image: bytes) -> None:
    """A row is what the package answers to an image."""
    expected = Classifier(package).predict_bytes([image])
    assert np.allclose(row["probabilities"], expected.probabilities[0], atol=1e-5)
    assert np.allclose(row["embedding"], expected.embedding[0], atol=1e-5)
    label = int(expected.probabilities[0].argmax())
    side = int.from_bytes(image[16:20], "big")  # in a PNG's header
    wanted = {
        **{"model": "colours", "version": "7", "package_digest": package.digest, "variant": "fp32"},
        **{"credential": "anonymous", "input": "image", "image_sha256": hashlib.sha256(image).hexdigest()},
        **{"image_width": side, "image_height": side, "label": label, "class_name": COLOURS[label], "share": 1.0},
    }
    assert {name: row[name] for name in wanted} == wanted


def _form(images: list[bytes]) -> bytes:
    head = '--edge\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return b"".join(head.encode() + image + b"\r\n" for image in images) + b"--edge--\r\n"


def _lines(port: int, body: bytes) -> list[dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "multipart/form-data; boundary=edge", "X-Request-ID": "batch"}
        connection.request("POST", "/v1/classify/batch", body, headers)
        return [json.loads(line) for line in connection.getresponse().read().splitlines()]
    finally:
        connection.close()


def _oip(name: str, images: list[bytes]) -> bytes:
    data = [base64.b64encode(image).decode() for image in images]
    return json.dumps({"inputs": [{"name": name, "datatype": "BYTES", "shape": [len(images)], "data": data}]}).encode()


def _oip_pixels(pixels: Any) -> bytes:
    one = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return json.dumps({"inputs": [one]}).encode()


def _metrics(port: int) -> dict[str, float]:
    text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    pairs = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_a_killed_process_leaves_what_it_answered(
    bento: Path, package: ModelPackage, spool: Path, storage: LocalStorage
) -> None:
    with serve(bento, package, **variables(spool)) as served:
        for number in range(20):
            assert ask(served.port, "/v1/classify", coloured("red", number), {"X-Request-ID": f"id-{number}"})[0] == 200
        wait_until(lambda: len(spooled(spool)) == 20)
        assert stored(spool, storage) == {}  # it still writes
        os.kill(served.pid, signal.SIGKILL)
        (path,) = prediction_spool.files(spool)
        with path.open("ab") as file:  # as if it had been killed in the middle of one more
            file.write(prediction_spool.prediction_frame(spooled(spool)[0])[:-3])
    assert set(stored(spool, storage)) == {(f"id-{number}", 0) for number in range(20)}


@pytest.mark.parametrize("given", [{}, {"DARKROOM_LOG_PREDICTIONS": "0"}], ids=["no spool", "no share"])
def test_off_is_off(bento: Path, package: ModelPackage, spool: Path, given: dict[str, str]) -> None:
    if given:
        given = {**given, "DARKROOM_PREDICTION_SPOOL": str(spool)}
    with serve(bento, package, **given) as served:
        assert ask(served.port, "/v1/classify", coloured("red"))[0] == 200
        assert "prediction-log" not in _threads(served.pid)
    assert not spool.exists()


def _threads(pid: int) -> str:
    return "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/comm"))


def test_images_are_kept_only_when_asked_for(
    bento: Path, package: ModelPackage, spool: Path, storage: LocalStorage
) -> None:
    image = coloured("blue", 3)
    for asked in ("0", "1"):
        with serve(bento, package, **variables(spool, DARKROOM_LOG_IMAGES=asked)) as served:
            for _ in range(3):
                assert ask(served.port, "/v1/classify", image)[0] == 200
        if asked == "1":
            (path,) = prediction_spool.files(spool)
            assert path.read_bytes().count(image) == 1
        rows = stored(spool, storage)
        kept = [storage.read(entry.key) for entry in storage.list("prediction_images/")]
        assert kept == ([image] if asked == "1" else [])
    assert len(rows) == 6


def test_a_secret_is_in_no_file(bento: Path, package: ModelPackage, spool: Path, tmp_path: Path) -> None:
    """Neither a caller's, nor the platform's own, whose proof of a process is no traffic either."""
    (tmp_path / "platform").write_text("the-platforms-own-key\n")
    key_file = {"DARKROOM_PLATFORM_KEY_FILE": str(tmp_path / "platform")}
    with serve(bento, package, **variables(spool, **key_file, DARKROOM_AUTH="required")) as served:
        header = {"Authorization": "Bearer the-platforms-own-key"}
        assert ask(served.port, "/v1/classify", coloured("red"), header)[0] == 200
    assert spooled(spool) == []
    with serve(bento, package, **variables(spool, **key_file)) as served:
        assert ask(served.port, "/v1/classify", coloured("red"), {"Authorization": "Bearer dk_secret"})[0] == 200
        assert ask(served.port, "/v1/classify", coloured("red"), {"X-Request-ID": "golden-set"})[0] == 200
    (path,) = prediction_spool.files(spool)
    assert len(spooled(spool)) == 1
    assert b"secret" not in path.read_bytes()


_IN_PROCESS = """
import asyncio, json, sys
from pathlib import Path
from bentos.classifier.dataplane import Dataplane
from bentos.kit import settings
dataplane = Dataplane(settings.load(Path("model")))
asyncio.run(dataplane.classify(Path(sys.argv[1]).read_bytes()))
dataplane.close()
print(json.dumps(list(sys.modules)))
"""


def test_a_process_that_logs_loads_no_parquet_and_no_store(bento: Path, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(coloured("red"))
    done = subprocess.run(
        [sys.executable, "-c", _IN_PROCESS, str(tmp_path / "image")],
        env={**environment(bento), **variables(spool, DARKROOM_LOG_IMAGES="1")},
        cwd=bento / "src",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"pyarrow", "boto3", "botocore", "pandas"}
    assert len(spooled(spool)) == 1


# --- which answers -------------------------------------------------------------------------------------------------


def log(spool: Path, share: float) -> PredictionLog:
    given = PredictionLogSettings(share=share, images=False, spool=spool, max_spool_bytes=16 * 1024**2)
    return PredictionLog(given, IDENTITY, "fp32", COLOURS)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_the_share_is_kept_whatever_ids_look_like(spool: Path, share: float) -> None:
    chosen = log(spool, share)
    for ids in ([f"{number}" for number in range(20_000)], [f"a-{number:08x}-b" for number in range(20_000)]):
        found = sum(chosen.samples(Asker("shop", one)) for one in ids)
        assert abs(found - 20_000 * share) <= 5 * (20_000 * share * (1 - share)) ** 0.5
    places = sum(chosen.samples(Asker("shop", "one", place)) for place in range(20_000))
    assert abs(places - 20_000 * share) <= 5 * (20_000 * share * (1 - share)) ** 0.5
    chosen.close()


def test_two_versions_that_get_the_same_requests_log_the_same_ones(spool: Path) -> None:
    some, others = log(spool, 0.2), log(spool / "other", 0.2)
    ids = [Asker("shop", f"{number}") for number in range(1000)]
    assert [some.samples(one) for one in ids] == [others.samples(one) for one in ids]
    for one in (some, others):
        one.close()


def _outputs() -> Outputs:
    return Outputs(
        logits=np.zeros((1, 3), np.float32),
        probabilities=np.array([[0.1, 0.7, 0.2]], np.float32),
        embedding=np.ones((1, 3), np.float32),
    )


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("darkroom_log_dropped_predictions_total", {"reason": reason}) or 0.0


def test_what_the_log_cannot_keep_up_with_is_given_up_and_counted(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk hangs: requests go on, and memory is bounded."""
    hangs, goes_on = threading.Event(), threading.Event()
    slow = log(spool, 1.0)
    write = slow._spool.write

    def hanging(frame: bytes) -> None:
        hangs.set()
        goes_on.wait()
        write(frame)

    monkeypatch.setattr(slow._spool, "write", hanging)
    before = dropped("queue")
    image = coloured("red")
    slow.offer(Asker("shop", "first"), image, _outputs())
    hangs.wait()
    for number in range(2000):
        slow.offer(Asker("shop", str(number)), image, _outputs())
    assert dropped("queue") - before == 2000 - 1023
    goes_on.set()
    slow.close()
    assert len(spooled(spool)) == 1024


def test_a_disk_that_refuses_is_told_once_and_tried_again(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bentos.classifier.prediction_log._PAUSE_S", 0.0)
    spool.write_text("")  # a file where the folder should be
    chosen = log(spool, 1.0)
    before = dropped("disk")
    for number in range(3):
        chosen.offer(Asker("shop", str(number)), coloured("red"), _outputs())
    wait_until(lambda: dropped("disk") - before == 3)
    spool.unlink()
    chosen.offer(Asker("shop", "3"), coloured("red"), _outputs())
    chosen.close()
    assert [one.request_id for one in spooled(spool)] == ["3"]
    said = [one.message for one in caplog.records if one.name == "darkroom.prediction-log"]
    assert said == ["predictions are not logged", "predictions are logged again"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DARKROOM_LOG_PREDICTIONS", "2"),
        ("DARKROOM_LOG_PREDICTIONS", "nan"),
        ("DARKROOM_LOG_PREDICTIONS", "some"),
        ("DARKROOM_LOG_IMAGES", "yes"),
        ("DARKROOM_PREDICTION_SPOOL_MB", "1"),
    ],
)
def test_settings_that_make_no_sense(name: str, text: str, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PREDICTION_SPOOL", str(spool))
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name}='{text}'"):
        kit_settings.load(spool)


def test_a_log_without_a_place_is_refused(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_LOG_PREDICTIONS", "0.5")
    with pytest.raises(UserError, match="DARKROOM_PREDICTION_SPOOL must name a folder"):
        kit_settings.load(spool)
