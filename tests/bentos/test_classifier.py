"""A built bento, served by a real BentoML worker in a process of its own."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from example_packages import COLOURS, coloured
from PIL import Image
from served_bento import Served, environment
from serving_platform import ask, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pipelines.adapters.packaging import build_bento, requirement_lists
from pipelines.core.inference import Classifier
from pipelines.core.model_package import ModelPackage
from pipelines.settings import REPOSITORY

FORBIDDEN = ("torch", "mlflow", "feast", "airflow", "great_expectations", "pandas", "pyarrow", "boto3", "psycopg")


def raw(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, given)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def multipart(*images: bytes, name: str = "image") -> tuple[bytes, str]:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode() + image + b"\r\n"
        for image in images
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models/colours/classify"])
def test_a_raw_body_is_classified_as_evaluation_would(served: Served, path: str) -> None:
    image = coloured("blue", 3)
    status, answer = ask(served.port, path, image, {"X-Request-ID": "abc-1"})
    assert status == 200
    expected = Classifier(served.package).predict_bytes([image]).probabilities[0]
    assert {one["class_name"]: one["probability"] for one in answer.pop("predictions")} == {
        name: float(probability) for name, probability in zip(COLOURS, expected, strict=True)
    }
    assert answer == {
        "model_name": "colours",
        "model_version": "7",
        "package_digest": served.package.digest,
        "request_id": "abc-1",
    }


def test_predictions_come_most_probable_first_and_top_k_limits_them(served: Served) -> None:
    for top_k, expected in ((1, 1), (2, 2), (3, 3), (50, 3)):
        _, answer = ask(served.port, f"/v1/classify?top_k={top_k}", coloured("green"))
        probabilities = [one["probability"] for one in answer["predictions"]]
        assert len(probabilities) == expected
        assert probabilities == sorted(probabilities, reverse=True)
        assert answer["predictions"][0] == {"class_name": "green", "label": 1, "probability": probabilities[0]}


def probabilities(answer: dict[str, Any]) -> list[float]:
    return [one["probability"] for one in answer["predictions"]]


@pytest.mark.parametrize("threshold", ["0", "0.5", "1", "0.0", "1e-2"])
def test_a_threshold_leaves_out_what_is_less_probable(served: Served, threshold: str) -> None:
    """By a request, a batch and a stream alike; where nothing is probable enough, nothing is said."""
    image, query = coloured("green", 9), f"threshold={threshold}"
    everything = probabilities(ask(served.port, "/v1/classify", image)[1])
    expected = [one for one in everything if one >= float(threshold)]
    assert 0 < everything[-1] < 1e-2  # so that each of these leaves out another number
    assert len(expected) == {"0": 3, "0.0": 3, "0.5": 1, "1e-2": 1, "1": 0}[threshold]
    assert probabilities(ask(served.port, f"/v1/classify?{query}", image)[1]) == expected
    assert probabilities(ask(served.port, f"/v1/classify?{query}&top_k=1", image)[1]) == expected[:1]
    body, content_type = multipart(image)
    assert (
        probabilities(json.loads(raw(served.port, f"/v1/classify/batch?{query}", body, content_type=content_type)[2]))
        == expected
    )
    with connect(f"ws://127.0.0.1:{served.port}/v1/stream?{query}") as socket:
        socket.send(image)
        assert probabilities(json.loads(socket.recv(timeout=20))) == expected


@pytest.mark.parametrize("threshold", ["", "half", "-0.1", "1.1", "nan", "inf", "0.5;"])
def test_a_bad_threshold_is_a_problem_by_every_transport(served: Served, threshold: str) -> None:
    query = f"threshold={threshold}"
    for path in ("/v1/classify", "/v1/models/colours/classify", "/v1/classify/batch"):
        status, problem = ask(served.port, f"{path}?{query}", coloured("red"))
        assert (status, problem["reason"]) == (400, "bad_threshold"), path
    with (
        connect(f"ws://127.0.0.1:{served.port}/v1/stream?{query}") as socket,
        pytest.raises(ConnectionClosed) as closed,
    ):
        socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4400, "bad_threshold")


def test_multipart_is_the_same_image(served: Served) -> None:
    body, content_type = multipart(coloured("red", 5))
    status, answer = ask(served.port, "/v1/classify", body, {"Content-Type": content_type})
    assert (status, answer["predictions"]) == (
        200,
        ask(served.port, "/v1/classify", coloured("red", 5))[1]["predictions"],
    )


def test_the_declared_type_of_a_raw_body_means_nothing(served: Served) -> None:
    for declared in ("application/x-www-form-urlencoded", "text/html", "image/jpeg", "application/json"):
        assert ask(served.port, "/v1/classify", coloured("red"), {"Content-Type": declared})[0] == 200


def test_every_answer_has_a_request_id(served: Served) -> None:
    for given in ("", "with space", "x" * 129):
        status, headers, body = raw(served.port, "/v1/classify", coloured("red"), X_Request_ID=given)
        assert status == 200
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
        assert json.loads(body)["request_id"] == headers["x-request-id"]


# --- refusals ------------------------------------------------------------------------------------------------------


def _picture(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "empty"),
        (b"hello, I am not an image", 415, "not_an_image"),
        (_picture("TIFF"), 415, "unsupported_format"),
        (_picture("JPEG", (64, 64))[:-40], 422, "truncated"),
        (b"\xff\xd8\xff" + b"x" * 50, 422, "corrupt"),
        (_picture("PNG", (6000, 5000)), 413, "too_many_pixels"),
        (bytes(1_000_001), 413, "too_many_bytes"),
    ],
)
def test_a_bad_image_is_a_problem_that_says_why(served: Served, body: bytes, status: int, reason: str) -> None:
    found, headers, text = raw(served.port, "/v1/classify", body, X_Request_ID="bad")
    problem = json.loads(text)
    assert (found, problem["status"], problem["reason"]) == (status, status, reason)
    assert headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "reason", "request_id"}
    assert problem["request_id"] == "bad"
    assert problem["detail"]


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/v1/classify?top_k=0", 400, "bad_top_k"),
        ("/v1/classify?top_k=many", 400, "bad_top_k"),
        ("/v1/models/other/classify", 404, "not_found"),
        ("/nowhere", 404, "not_found"),
        ("/", 405, "method_not_allowed"),
    ],
)
def test_a_wrong_request_is_a_problem(served: Served, path: str, status: int, reason: str) -> None:
    found, problem = ask(served.port, path, coloured("red"))
    assert (found, problem["reason"]) == (status, reason)


def test_get_is_not_allowed(served: Served) -> None:
    status, headers, _ = raw(served.port, "/v1/classify")
    assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "form",
    [multipart(), multipart(coloured("red"), coloured("blue")), (b"nonsense", "multipart/form-data; boundary=edge")],
    ids=["none", "two", "nonsense"],
)
def test_a_form_without_exactly_one_file_is_refused(served: Served, form: tuple[bytes, str]) -> None:
    status, problem = ask(served.port, "/v1/classify", form[0], {"Content-Type": form[1]})
    assert (status, problem["reason"]) == (400, "bad_multipart")


def test_a_chunked_body_is_cut_at_the_limit(served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.request("POST", "/v1/classify", iter([bytes(300_000)] * 5), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["reason"]) == (413, "too_many_bytes")
    finally:
        connection.close()


# --- operation -----------------------------------------------------------------------------------------------------


def test_ready_alive_and_vouched_for(served: Served) -> None:
    assert raw(served.port, "/livez")[0] == 200
    status, headers, _ = raw(served.port, "/readyz")
    assert (status, headers["x-envoy-upstream-healthchecked-cluster"]) == (200, "colours-v7-1")


def test_what_serves_describes_itself(served: Served) -> None:
    status, about = ask(served.port, "/v1/models/colours")
    assert status == 200
    assert about["class_names"] == list(COLOURS)
    assert (about["variant"], about["provider"], about["input_height"]) == ("fp32", "cpu", 8)


def test_metrics_count_requests_and_refusals(served: Served) -> None:
    ask(served.port, "/v1/classify", coloured("red"))
    ask(served.port, "/v1/classify", b"")
    text = raw(served.port, "/metrics")[2].decode()
    assert re.search(r'darkroom_requests_total\{route="classify",status="200"\} [1-9]', text)
    assert re.search(r'darkroom_refused_requests_total\{reason="empty"\} [1-9]', text)
    assert f'package_digest="{served.package.digest}"' in text
    for stage in ("queue", "decode", "batch_wait", "model"):
        assert re.search(rf'darkroom_stage_seconds_count{{stage="{stage}"}} [1-9]', text)
    assert 'darkroom_limit{of="waiting_images"} 256.0' in text


def test_the_same_image_again_comes_from_the_cache(served: Served) -> None:
    image = coloured("red", 4711)
    hits = [_hits(served)]
    answers = []
    for path in ("/v1/classify", "/v1/models/colours/classify", "/v1/embed"):
        answers.append(ask(served.port, path, image)[1])
        hits.append(_hits(served))
    assert [hit - hits[0] for hit in hits] == [0, 0, 1, 2]
    assert answers[0]["predictions"] == answers[1]["predictions"]


def _hits(served: Served) -> float:
    text = raw(served.port, "/metrics")[2].decode()
    wanted = 'cache_lookups_total{level="memory",result="hit"}'
    return float(next(line.split()[-1] for line in text.splitlines() if wanted in line))


def test_a_refusal_is_in_the_log_with_its_request_id(served: Served) -> None:
    ask(served.port, "/v1/classify", b"", {"X-Request-ID": "look-for-me"})
    wait_until(lambda: "look-for-me" in served.log.read_text())
    line = json.loads(next(line for line in served.log.read_text().splitlines() if "look-for-me" in line))
    assert (line["status"], line["reason"], line["path"]) == (400, "empty", "/v1/classify")


def test_probes_answer_while_images_are_worked_on(served: Served) -> None:
    """Decoding happens in threads: a large image does not hold up the event loop."""
    image = _picture("PNG", (4800, 4900))
    workers = [threading.Thread(target=ask, args=(served.port, "/v1/classify", image)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert all(raw(served.port, "/livez")[0] == 200 for _ in range(20))
    still_working = any(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.join()
    assert still_working


# --- the bento -----------------------------------------------------------------------------------------------------


def test_it_runs_on_the_copy_of_our_code_inside_the_bento(served: Served) -> None:
    line = json.loads(next(line for line in served.log.read_text().splitlines() if '"model loaded"' in line))
    assert line["sources"] == str(served.bento / "src")


def test_no_training_or_pipeline_library_is_loaded(bento: Path) -> None:
    program = "import json, sys, bentos.classifier.service as s; print(json.dumps([s.__file__, *sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(bento),
        cwd=bento / "src",
        capture_output=True,
        text=True,
        check=True,
    )
    file, *modules = json.loads(done.stdout.splitlines()[-1])
    assert file.startswith(str(bento))
    assert not {name.split(".")[0] for name in modules} & set(FORBIDDEN)


def test_importing_the_service_loads_no_model_and_binds_no_port(bento: Path) -> None:
    program = (
        "import psutil, sys, bentos.classifier.service;"
        "print(len(psutil.Process().net_connections()), 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(bento), cwd=bento, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "False"]


def test_the_bento_names_no_place(bento: Path) -> None:
    """Neither a package index nor a path of this machine, and no credentials' form."""
    for path in bento.rglob("*"):
        if path.is_file() and path.suffix in ("", ".yaml", ".txt", ".in", ".json", ".md", ".sh"):
            text = path.read_text()
            assert not re.search(r"index-url|find-links|trusted-host|://[^/]*@", text), path
            assert str(REPOSITORY) not in text, path
            assert str(bento.parent.parent) not in text, path


def test_requirements_are_short_pinned_and_lean(bento: Path) -> None:
    lists = requirement_lists()
    assert set(lists) == {"requirements.txt", "requirements-cuda.txt"}
    assert "onnxruntime-gpu[cuda,cudnn]==" in lists["requirements-cuda.txt"]
    for text in (*lists.values(), (bento / "env" / "python" / "requirements.txt").read_text()):
        lines = text.split()
        assert len(lines) <= 18
        assert all(re.fullmatch(r"[a-z-]+(\[[a-z,]+\])?==[0-9][0-9a-z.]*", line) for line in lines)
        assert not {line.split("==")[0] for line in lines} & {"torch", "mlflow", "feast", "apache-airflow"}


def test_the_same_version_gives_the_same_bento(bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    again = build_bento(package, version=7, out=tmp_path / "bento")
    built, rebuilt = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
        for folder in (bento, again)
    )
    assert built == rebuilt
