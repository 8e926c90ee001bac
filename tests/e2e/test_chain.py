"""The real platform from an empty folder: undisturbed, used as a person would, and with its processes killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.live_platform import LivePlatform, wait_for

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LivePlatform, dict[str, Any]]]:
    """A platform after one `darkroom run`, and what that said."""
    platform = LivePlatform(tmp_path_factory.mktemp("chain") / "home")
    try:
        yield platform, platform.json("run")
    finally:
        platform.command("down")


def test_one_command_leads_from_images_to_predictions(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    assert summary["accuracy_low"] > 0.9
    assert summary["num_images"] > 1700
    assert len(summary["intervals"]) == 5
    assert len(summary["held_out"]) == 10
    assert summary["held_out_correct"] >= 8
    assert summary["overhead_per_task_s"] is not None
    trained = [run for run, references in platform.references("train_classifier").items() if references]
    assert (
        len(
            [run for run in trained if any(one.step == "train" for one in platform.references("train_classifier")[run])]
        )
        == 1
    )


def test_the_printed_curl_line_works_when_pasted(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    _, summary = undisturbed
    done = subprocess.run(["bash", "-c", summary["curl"]], capture_output=True, text=True, check=True)
    assert '"model_version"' in done.stdout
    assert summary["package_digest"] in done.stdout


def test_a_broken_image_is_a_problem_that_says_why(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, _ = undisturbed
    url, header = f"{platform.gateway_url}/v1/classify", platform.authorization
    request = urllib.request.Request(url, data=b"no image", headers=header)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 415
    assert caught.value.headers["Content-Type"].startswith("application/problem+json")


def test_running_again_does_nothing_again(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    again = platform.json("run")
    assert again["steps"] == []
    assert again["package_digest"] == summary["package_digest"]


def test_data_that_do_not_hold_are_parked_and_the_message_says_why(
    undisturbed: tuple[LivePlatform, dict[str, Any]], tmp_path: Path
) -> None:
    platform, _ = undisturbed
    for name, number in (("many", 12), ("few", 1)):
        (tmp_path / "lopsided" / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.random.default_rng(index + number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "lopsided" / name / f"{index}.png")
    done = platform.command("run", "--data", str(tmp_path / "lopsided"))
    assert done.returncode == 1
    for said in ("parked", "smallest class 1", "at least 2 (validation.min_images_per_class)", "few/0.png"):
        assert said in done.stderr, done.stderr
    assert platform.references("train_classifier__lopsided") == {}


def test_a_backfill_done_twice_changes_nothing(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    before = platform.end_state(summary)
    days = sorted(summary["intervals"])
    assert platform.json("backfill", "--from", days[0], "--to", days[-1])["ran"] == []
    assert platform.end_state(summary) == before


def test_a_head_on_stored_embeddings_is_a_recipe_away_and_serves_beside_it(
    undisturbed: tuple[LivePlatform, dict[str, Any]],
) -> None:
    platform, _ = undisturbed
    recipes = platform.home / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / "digits-head.toml").write_text(
        '[source]\nuri = "data/digits/dt=2024-01-01"\n[training]\nmode = "head"\nthreads = 1\n'
    )
    summary = platform.json("run", "--name", "digits-head", "--direct")
    assert summary["accuracy_low"] > 0.7
    assert summary["held_out_correct"] >= 8
    answer = subprocess.run(["bash", "-c", summary["curl"]], capture_output=True, text=True, check=True)
    assert '"model_name":"digits-head"' in answer.stdout.replace(" ", "")


def test_a_network_finetuned_from_the_weights_of_another_is_served_too(
    undisturbed: tuple[LivePlatform, dict[str, Any]],
) -> None:
    platform, _ = undisturbed
    runs = platform.references("train_classifier").values()
    key = next(one.key for references in runs for one in references if one.step == "train")
    weights = platform.home / "store" / "results" / "train" / key / "weights.pt"
    recipes = platform.home / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / "digits-tuned.toml").write_text(
        f"""
        source.uri = "data/digits/dt=2024-01-02"
        model.weights = "{weights}"
        training = {{ mode = "finetune", epochs = 3, threads = 1 }}
        augmentation.flip = "none"
        """
    )
    summary = platform.json("run", "--name", "digits-tuned", "--direct")
    assert summary["accuracy_low"] > 0.8
    assert summary["held_out_correct"] >= 8
    answer = subprocess.run(["bash", "-c", summary["curl"]], capture_output=True, text=True, check=True)
    assert '"model_name":"digits-tuned"' in answer.stdout.replace(" ", "")
    assert any(one["name"] == "digits-tuned" and "champion" in one["aliases"] for one in platform.json("models"))


def test_every_prediction_leads_to_the_files_that_taught_it(
    undisturbed: tuple[LivePlatform, dict[str, Any]],
) -> None:
    platform, summary = undisturbed
    traced = platform.json("trace", summary["package_digest"], "--images")
    assert traced["snapshot_id"] == summary["snapshot_id"]
    assert len(traced["images"]) > 1000
    image_id = summary["held_out"][0]["image_id"]
    image = str(platform.home / "store" / "blobs" / image_id[:2] / image_id)
    assert platform.json("predict", "digits", image)
    assert platform.json("similar", image)


def test_down_ends_everything_and_up_serves_again(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    assert platform.command("down").returncode == 0
    wait_for(lambda: not platform.processes(), 10, "every process to be gone")
    assert platform.command("up").returncode == 0
    answer = subprocess.run(["bash", "-c", summary["curl"]], capture_output=True, text=True, check=True)
    assert summary["package_digest"] in answer.stdout


@pytest.fixture(scope="module")
def expected(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Where the undisturbed platform lay, and its end state. It makes room, since manifests name files by place."""
    platform, summary = undisturbed
    state = platform.end_state(summary)
    platform.command("down")
    platform.home.rename(platform.home.with_name("undisturbed"))
    return platform.home, state


# (DAG, step, victim): once the step has finished, kill -9 the platform's process of that name; the victim `itself` is
# the step's own process while it runs.
QUICK = (
    ("ingest_images", "ingest", "airflow-scheduler"),
    ("ingest_images", "accept", "postgres"),
    ("train_classifier", "train", "itself"),
    ("train_classifier", "train", "supervisor"),
)
EVERY_SERVICE = (
    ("ingest_images", "plan", "airflow-dag-processor"),
    ("ingest_images", "assemble", "airflow-api"),
    ("ingest_images", "accept", "step-host"),
    ("train_classifier", "settle", "airflow-triggerer"),
    ("train_classifier", "prepare", "mlflow"),
    ("train_classifier", "register", "envoy"),
)
LATE = (
    ("train_classifier", "export", "itself"),
    ("train_classifier", "evaluate", "postgres"),
    ("train_classifier", "register", "supervisor"),
    ("train_classifier", "build_bento", "postgres"),
    ("train_classifier", "build_bento", "airflow-scheduler"),
)


@pytest.mark.parametrize(
    "kills", [QUICK, pytest.param(EVERY_SERVICE, marks=pytest.mark.full), pytest.param(LATE, marks=pytest.mark.full)]
)
def test_killed_on_the_way_it_ends_in_the_same_state(
    expected: tuple[Path, dict[str, Any]], kills: tuple[tuple[str, str, str], ...]
) -> None:
    home, state = expected
    platform = LivePlatform(home)
    try:
        with platform.running("run") as command:
            for dag, step, victim in kills:
                if victim == "itself":
                    os.kill(wait_for(lambda d=dag, s=step: platform.step_pid(d, s), 400, step), signal.SIGKILL)  # type: ignore[misc]
                else:
                    wait_for(lambda d=dag, s=step: platform.finished(d, s), 400, f"{step} to finish")  # type: ignore[misc]
                    platform.kill(victim)
            # One command goes on through all of that; should it not, the same command again must.
            command.wait(400)
        summary = platform.json("run")
        assert platform.end_state(summary) == state
    finally:
        platform.command("down")
        assert not platform.processes()
        home.rename(home.with_name(f"disturbed-{kills[0][2]}"))
