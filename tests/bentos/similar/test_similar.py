"""A real process that searches real stored features: what it answers, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from otlp_collector import collecting
from PIL import Image
from serving_platform import ask, wait_until
from similar_service import Searching, searching
from small_datasets import class_folders, picture
from stored_images import Stored, store_images
from typer.testing import CliRunner

from bentos.similar.http import table
from pipelines.cli.app import app
from pipelines.core import datasets, package_store
from pipelines.core.features import HOG_COLOR
from pipelines.core.model_package import ModelPackage
from pipelines.core.package_embedding import PackageEmbedder
from pipelines.settings import Settings

UNSEEN = 77_777


def png(seed: int = UNSEEN, side: int = 24) -> bytes:
    file = io.BytesIO()
    picture(seed, (200, 40, 40), side).save(file, "PNG")
    return file.getvalue()


def head(stored: Stored) -> str:
    return datasets.read_head(stored.house.storage, stored.house.name).digest()


# --- answers -------------------------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_brute_force(search: Searching, stored: Stored) -> None:
    for image in (png(), stored.files[3].read_bytes()):
        expected = stored.nearest(image, 7)
        status, answer = ask(search.port, f"/v1/models/{stored.house.name}/similar?top_k=7", image)
        assert status == 200, answer
        found = answer["neighbours"]
        assert [one["image_id"] for one in found] == [
            hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in expected
        ]
        assert [one["similarity"] for one in found] == pytest.approx([like for _, like in expected], abs=1e-5)
        assert [one["label"] for one in found] == [path.parent.name for path, _ in expected]
        assert [one["source_uri"] for one in found] == [str(path) for path, _ in expected]
        assert [f"dt={one['event_timestamp'][:10]}" for one in found] == [
            path.parent.parent.name for path, _ in expected
        ]


def test_the_answer_says_what_was_searched(search: Searching, stored: Stored) -> None:
    status, answer = ask(search.port, "/v1/similar", png(), {"X-Request-ID": "mine"})
    assert status == 200
    assert len(answer.pop("neighbours")) == 5
    assert answer == {
        "model_name": stored.house.name,
        "request_id": "mine",
        "embedding": "hog-color-v1",
        "embedding_version": "1",
        "package_digest": None,
        "view": HOG_COLOR.name,
        "dataset_digest": head(stored),
    }


def test_the_newest_label_counts(search: Searching, stored: Stored) -> None:
    answer = ask(search.port, "/v1/similar?top_k=1", stored.relabelled.read_bytes())[1]
    (found,) = answer["neighbours"]
    assert (found["label"], found["source_uri"]) == ("blue", str(stored.relabelled))
    assert found["similarity"] == pytest.approx(1, abs=1e-5)


def test_the_command_answers_alike(
    search: Searching, stored: Stored, postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DARKROOM_HOME", str(postgres_settings.home))
    monkeypatch.setenv("DARKROOM_STORE", stored.house.storage.uri)
    recipes = postgres_settings.home / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / f"{stored.house.name}.toml").write_text((stored.recipes / f"{stored.house.name}.toml").read_text())
    (tmp_path / "image.png").write_bytes(png())
    arguments = ["similar", str(tmp_path / "image.png"), "-d", stored.house.name, "-n", "9", "--json"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    rows = [{key: value for key, value in row.items() if key != "path"} for row in json.loads(shown.stdout)]
    assert rows == ask(search.port, "/v1/similar?top_k=9", png())[1]["neighbours"]


def test_a_form_is_as_good_as_a_raw_body(search: Searching) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png() + b"\r\n--x--\r\n"
    by_form = ask(search.port, "/v1/similar", form, {"Content-Type": "multipart/form-data; boundary=x"})
    raw = ask(search.port, "/v1/similar", png(), {"Content-Type": "text/plain"})
    assert by_form[0] == raw[0] == 200
    assert by_form[1]["neighbours"] == raw[1]["neighbours"]


@pytest.mark.parametrize(("top_k", "expected"), [("1", 1), ("16", 16), ("100", 17)])
def test_top_k(search: Searching, top_k: str, expected: int) -> None:
    status, answer = ask(search.port, f"/v1/similar?top_k={top_k}", png())
    # 12 and 5 images are stored, one of them twice.
    assert (status, len(answer["neighbours"])) == (200, min(expected, 16))


def test_a_moved_head_shows_within_seconds(postgres_settings: Settings, tmp_path: Path) -> None:
    stored = store_images(postgres_settings, tmp_path)
    variables = {"DARKROOM_VECTORS_URL_FILE": str(stored.url_file)}
    with searching(tmp_path, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search:
        image = stored.files[0].read_bytes()
        assert ask(search.port, "/v1/similar", image)[1]["dataset_digest"] == head(stored)
        class_folders(stored.house.data / "dt=2024-01-03", {"green": 1}, first_seed=9000)
        again = stored.house.data / "dt=2024-01-03" / "green" / "again.png"
        again.write_bytes(image)
        stored.house.run("2024-01-03")

        def told() -> bool:
            status, answer = ask(search.port, "/v1/similar?top_k=1", image)
            assert status == 200
            return answer["dataset_digest"] == head(stored) and answer["neighbours"][0]["source_uri"] == str(again)

        wait_until(told)
        index = next((tmp_path / "cache" / "labels").glob("*.sqlite"))
        index.write_bytes(b"not an index")
        wait_until(told)  # it can be deleted, or spoilt, at any time


def test_by_a_package_s_embedding(package: ModelPackage, postgres_settings: Settings, tmp_path: Path) -> None:
    text = f"package:{package.digest}"
    view = f"image_embedding_package_{package.digest[:8]}"
    work = tmp_path / "stored"
    work.mkdir()
    stored = store_images(postgres_settings, work, embedder=PackageEmbedder(package, view))
    package_store.put(stored.house.storage, package)
    stored.write_recipe(stored.house.name, f'[features]\nembedding = "{text}"\n')
    stored.write_recipe("another", f'[features]\nembedding = "package:{"0" * 64}"\n')
    variables = {"DARKROOM_VECTORS_URL_FILE": str(stored.url_file)}
    with searching(work, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search:
        status, answer = ask(search.port, "/v1/similar?top_k=100", png())
        assert (status, answer["embedding"], answer["view"]) == (200, text, view)
        assert (answer["embedding_version"], answer["package_digest"]) == (None, package.digest)
        expected = [like for _, like in stored.nearest(png(), 100)]
        assert [one["similarity"] for one in answer["neighbours"]] == pytest.approx(expected, abs=1e-5)
        assert "libtorch" not in search.libraries()
        status, problem = ask(search.port, "/v1/models/another/similar", png())
        assert (status, problem["reason"]) == (501, "embedding_unavailable")
        assert "darkroom models" in problem["detail"]


# --- refusals ------------------------------------------------------------------------------------------------------

CUT = png(side=400)[:-100]


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"", {}, 400, "empty"),
        (b"no image", {}, 415, "not_an_image"),
        (CUT, {}, 422, "truncated"),
        (b"x" * 1_000_001, {}, 413, "too_many_bytes"),
        (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "bad_multipart"),
    ],
)
def test_wrong_bodies(search: Searching, body: bytes, headers: dict[str, str], status: int, reason: str) -> None:
    found, problem = ask(search.port, "/v1/similar", body, headers)
    assert (found, problem["status"], problem["reason"]) == (status, status, reason)
    assert problem["type"] == f"urn:darkroom:problem:{reason}"


def test_too_many_pixels(search: Searching) -> None:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    status, problem = ask(search.port, "/v1/similar", file.getvalue())
    assert (status, problem["reason"]) == (413, "too_many_pixels")


@pytest.mark.parametrize("top_k", ["0", "101", "-1", "x", "", "1e1"])
def test_wrong_numbers(search: Searching, top_k: str) -> None:
    status, problem = ask(search.port, f"/v1/similar?top_k={top_k}", png())
    assert (status, problem["reason"]) == (400, "bad_top_k")
    assert "from 1 to 100" in problem["detail"]


def test_models_that_are_not_there_or_not_stored(search: Searching, stored: Stored) -> None:
    status, problem = ask(search.port, "/v1/models/nobody/similar", png())
    assert (status, problem["reason"]) == (404, "not_found")
    stored.write_recipe("new-here")
    (stored.recipes / "broken.toml").write_text("no toml")

    def known() -> bool:
        return ask(search.port, "/v1/models/new-here/similar", png())[1]["reason"] == "nothing_stored"

    wait_until(known)  # recipes are read again within a second or two
    status, problem = ask(search.port, "/v1/models/new-here/similar", png())
    assert (status, "darkroom run" in problem["detail"]) == (404, True)
    status, problem = ask(search.port, "/v1/models/broken/similar", png())
    assert (status, problem["reason"]) == (500, "bad_recipe")
    assert str(stored.recipes) not in problem["detail"]


def test_an_embedding_that_needs_torch_names_the_mend(search: Searching, stored: Stored) -> None:
    stored.write_recipe("with-torch", '[features]\nembedding = "torchvision:resnet18:/weights.pth"\n')
    wait_until(lambda: ask(search.port, "/v1/models/with-torch/similar", png())[0] != 404)
    status, problem = ask(search.port, "/v1/models/with-torch/similar", png())
    assert (status, problem["reason"]) == (501, "embedding_needs_torch")
    assert all(mend in problem["detail"] for mend in ("hog-color-v1", "package:<digest>", "darkroom similar"))
    assert "/weights.pth" not in problem["detail"]


def test_features_in_redis_are_not_searched(stored: Stored) -> None:
    with searching(stored.work, stored.house.storage.uri, stored.recipes, stored.house.name) as search:
        status, problem = ask(search.port, "/v1/similar", png())
    assert (status, problem["reason"]) == (501, "features_in_redis")
    assert "DARKROOM_FEATURES_REDIS" in problem["detail"]


def test_other_methods_and_paths(search: Searching) -> None:
    assert ask(search.port, "/v1/similar")[0] == 405
    assert ask(search.port, "/v1/models/x/classify", png())[0] == 404


# --- what an operator sees, and what the process is ----------------------------------------------------------------


def test_metrics_and_log_lines(search: Searching, stored: Stored) -> None:
    ask(search.port, "/v1/similar", png())
    ask(search.port, "/v1/similar", b"no image", {"X-Request-ID": "refused-here"})
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{search.port}/metrics") as answer:
        text = answer.read().decode()
    for line in (
        'darkroom_requests_total{route="similar",status="200"}',
        'darkroom_refused_requests_total{reason="not_an_image"}',
        'darkroom_stage_seconds_count{stage="search"}',
        'darkroom_stage_seconds_count{stage="labels"}',
        'darkroom_limit{of="waiting_images"} 256.0',
    ):
        assert line in text
    line = next(line for line in search.log.read_text().splitlines() if "refused-here" in line)
    assert {"event": "refused", "route": "similar", "status": 415, "reason": "not_an_image"}.items() <= json.loads(
        line
    ).items()


def test_a_traced_request_has_its_stages(stored: Stored) -> None:
    stages = ("queue", "decode", "model", "search", "labels")
    trace_id = secrets.token_hex(16)
    with collecting() as collector:
        variables = {"DARKROOM_VECTORS_URL_FILE": str(stored.url_file), "DARKROOM_OTLP_ENDPOINT": collector.endpoint}
        with searching(stored.work, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search:
            header = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", "X-Request-ID": "mine"}
            assert ask(search.port, "/v1/similar", png(), header)[0] == 200
            spans = collector.trace(trace_id, "POST /v1/similar", *stages)
    request = spans["POST /v1/similar"]
    assert request.service == "darkroom-similar"
    assert request.attributes["darkroom.model_name"] == stored.house.name
    assert request.attributes["darkroom.request_id"] == "mine"
    assert {spans[stage].parent_id for stage in stages} == {request.span_id}
    ends = [spans[stage].end_ns for stage in stages]
    assert ends == sorted(ends)


def test_the_document_is_valid_and_complete(search: Searching) -> None:
    status, document = ask(search.port, "/v1/similar/openapi.json")
    assert status == 200
    OpenAPIV31SpecValidator(document).validate()
    routes = {one.path for one in table().endpoints}
    assert set(document["paths"]) == routes - {"/metrics", "/v1/similar/openapi.json"}
    answer = ask(search.port, "/v1/similar", png())[1]
    assert set(document["components"]["schemas"]["Similar"]["required"]) == set(answer)
    OAS31Validator({"$ref": "#/components/schemas/Similar", "components": document["components"]}).validate(answer)
    assert set(document["components"]["schemas"]["Neighbour"]["required"]) == set(answer["neighbours"][0])


def test_random_requests_are_answered_as_it_says(stored: Stored, tmp_path: Path) -> None:
    """With every check but one: no schema says which bytes are an image, so what fits it may be refused."""
    (tmp_path / "key").write_text("the key of this process")
    variables = {
        "DARKROOM_VECTORS_URL_FILE": str(stored.url_file),
        "DARKROOM_AUTH": "required",
        "DARKROOM_PLATFORM_KEY_FILE": str(tmp_path / "key"),
    }
    with searching(stored.work, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                f"http://127.0.0.1:{search.port}/v1/similar/openapi.json",
                *("--header", "Authorization: Bearer the key of this process"),
                *("--exclude-checks", "positive_data_acceptance", "--max-examples", "10", "--seed", "1", "--no-color"),
                *("--phases", "examples,coverage,fuzzing", "--request-timeout", "20"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_process_is_light(search: Searching, record_property: pytest.RecordProperty) -> None:
    """After answers, too: Parquet is read elsewhere, and neither torch nor ONNX Runtime is needed for NumPy."""
    assert ask(search.port, "/v1/similar", png())[0] == 200
    libraries = search.libraries()
    assert [name for name in ("libtorch", "onnxruntime", "pyarrow", "pandas", "grpc") if name in libraries] == []
    record_property("pss_mb", round(search.memory_bytes / 1e6, 1))
    assert search.memory_bytes < 120e6
