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

import pytest

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
    request = urllib.request.Request(f"{platform.gateway_url}/v1/classify", data=b"no image", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert 400 <= caught.value.code < 500
    assert caught.value.headers["Content-Type"].startswith("application/problem+json")


def test_running_again_does_nothing_again(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    again = platform.json("run")
    assert again["steps"] == []
    assert again["package_digest"] == summary["package_digest"]


def test_a_backfill_done_twice_changes_nothing(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    platform, summary = undisturbed
    before = platform.end_state(summary)
    days = sorted(summary["intervals"])
    assert platform.json("backfill", "--from", days[0], "--to", days[-1])["ran"] == []
    assert platform.end_state(summary) == before


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


def test_killed_on_the_way_it_ends_in_the_same_state(undisturbed: tuple[LivePlatform, dict[str, Any]]) -> None:
    reference, reference_summary = undisturbed
    expected = reference.end_state(reference_summary)
    reference.command("down")
    # The same place, since manifests name their files by where they lie.
    reference.home.rename(reference.home.with_name("undisturbed"))
    platform = LivePlatform(reference.home)
    try:
        with platform.running("run") as command:
            wait_for(lambda: platform.finished("ingest_images", "ingest"), 240, "a first ingest")
            platform.kill("airflow-scheduler")
            wait_for(lambda: platform.finished("ingest_images", "accept"), 240, "a first accepted interval")
            platform.kill("postgres")
            trainer = wait_for(lambda: platform.step_pid("train_classifier", "train"), 400, "the trainer")
            os.kill(trainer, signal.SIGKILL)
            wait_for(lambda: platform.finished("train_classifier", "train"), 240, "training to end after all")
            platform.kill("supervisor")
            # One command goes on through all of that; should it not, the same command again must.
            command.wait(400)
        summary = platform.json("run")
        assert platform.end_state(summary) == expected
    finally:
        platform.command("down")
        assert not platform.processes()
