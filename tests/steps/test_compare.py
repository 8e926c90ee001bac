"""Every verdict of the gate, with real packages scored through the serving path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from example_packages import COLOURS, coloured, write_package

from pipelines.core import manifest
from pipelines.core.deployments import Withdrawn
from pipelines.core.errors import GateRejected
from pipelines.core.model_package import ModelPackage
from pipelines.core.recipe import Gate, Split
from pipelines.core.values import Compared, Gated, Registered
from pipelines.core.verdicts import against_champion, against_majority
from pipelines.steps.compare import Champion, compare
from pipelines.steps.gate import gate

RIGHT = 10 * np.eye(3, dtype=np.float32)
BLIND_TO_BLUE = RIGHT * np.array([1, 1, 0], np.float32)
CONSTANT = np.zeros((3, 3), np.float32)


class _Withdrawals:
    """At most one version, 4, was rolled back from, to version 3."""

    def __init__(self, package: ModelPackage | None) -> None:
        self._content = package.content_digest if package else ""

    def find(self, model: str, content_digest: str) -> Withdrawn | None:
        mine = model == "colours" and content_digest == self._content
        return Withdrawn(version=4, returned_to=3, at="2024-01-02T10:00:00.123+00:00") if mine else None


class World:
    """Images in memory and snapshots of them on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: dict[str, bytes] = {}

    def image(self, class_name: str, seed: int) -> str:
        data = coloured(class_name, seed)
        image_id = hashlib.sha256(data).hexdigest()
        self.blobs[image_id] = data
        return image_id

    def snapshot(self, name: str, rows: Sequence[dict[str, object]]) -> Path:
        """Rows need image_id, label and split; perceptual hashes are far apart unless given."""
        filled = [
            {
                "width": 8,
                "height": 8,
                "format": "PNG",
                "mode": "RGB",
                "size_bytes": 1,
                "phash": int(str(row["image_id"])[:16], 16),
                "event_timestamp": datetime(2024, 1, 1, tzinfo=UTC),
                "source_uri": f"/data/{row['image_id']}.png",
                "source_split": None,
                "group_id": row["image_id"],
                "excluded_reason": None,
                "interval": "static",
                **row,
            }
            for row in rows
        ]
        path = self.folder / f"{name}.parquet"
        manifest.write(path, pa.Table.from_pylist(filled, schema=manifest.SNAPSHOT))
        return path

    def balanced(self, per_class: int, split: str = "test", first: int = 0) -> list[dict[str, object]]:
        return [
            {"image_id": self.image(name, seed), "label": name, "split": split}
            for name in COLOURS
            for seed in range(first, first + per_class)
        ]

    def compare(
        self,
        weights: np.ndarray,
        snapshot: Path,
        champion: tuple[np.ndarray, Path] | None = None,
        gate: Gate | None = None,
        class_names: tuple[str, ...] = COLOURS,
        withdrawn: ModelPackage | None = None,
        deploy_unmeasured: bool = False,
    ) -> Compared:
        candidate = write_package(self.folder / "candidate", weights=weights, run_id="train_classifier/new")
        serving = None
        if champion is not None:
            package = write_package(self.folder / "champion", weights=champion[0], class_names=class_names)
            serving = Champion(version=3, package=package, snapshot=champion[1])
        return compare(
            candidate.folder,
            snapshot,
            serving,
            _Withdrawals(withdrawn),
            self.blobs.__getitem__,
            self.folder,
            gate=gate or Gate(),
            split=Split(),
            threads=2,
            deploy_unmeasured=deploy_unmeasured,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_first_model_must_beat_the_commonest_class(world: World) -> None:
    found = world.compare(RIGHT, world.snapshot("s", world.balanced(20)))
    assert (found.verdict, found.accepted, found.champion_version, found.num_images) == ("better", True, None, 60)
    assert "33.33%" in found.reason


def test_a_first_model_that_always_says_the_same_is_rejected(world: World) -> None:
    found = world.compare(CONSTANT, world.snapshot("s", world.balanced(20)))
    assert (found.verdict, found.accepted) == ("worse", False)


def test_a_first_model_on_hardly_any_image_leaves_it_open() -> None:
    found = against_majority(np.array([True, True]), np.array([0, 1]), Gate())
    assert (found.name, found.accepted) == ("too_few", False)
    assert not against_majority(np.zeros(0, bool), np.zeros(0, np.int64), Gate()).accepted


def test_better(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(20))
    found = world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, snapshot))
    assert (found.verdict, found.accepted, found.champion_version, found.num_images) == ("better", True, 3, 60)
    judged = json.loads((world.folder / "judged.json").read_text())
    assert len(judged["image_ids"]) == sum(judged["candidate_right"]) == 60
    assert sum(judged["champion_right"]) == 40


def test_worse(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(20))
    found = world.compare(BLIND_TO_BLUE, snapshot, champion=(RIGHT, snapshot))
    assert (found.verdict, found.accepted) == ("worse", False)
    assert "-33.33 points" in found.reason


def test_not_worse_needs_images_enough_for_the_margin(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(40))
    champion = (RIGHT * 2, snapshot)
    found = world.compare(RIGHT, snapshot, champion, gate=Gate(margin=0.03))
    assert (found.verdict, found.accepted) == ("not_worse", True)


def test_an_open_loss_beyond_the_margin_is_too_few(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(40))
    found = world.compare(RIGHT, snapshot, champion=(RIGHT * 2, snapshot), gate=Gate(margin=0.01))
    assert (found.verdict, found.accepted) == ("too_few", False)
    assert "about 276 images would tell" in found.reason


def test_fewer_common_images_than_asked_for_are_too_few(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(10))
    found = world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, snapshot), gate=Gate(min_images=31))
    assert (found.verdict, found.num_images) == ("too_few", 30)


def test_the_champion_itself_is_the_same(world: World) -> None:
    """Equal work of another run is the same too: only the run's name differs."""
    snapshot = world.snapshot("s", world.balanced(1))
    found = world.compare(RIGHT, snapshot, champion=(RIGHT, snapshot))
    assert (found.verdict, found.accepted, found.champion_version) == ("same", True, 3)


def test_what_was_rolled_back_from_is_refused(world: World) -> None:
    """Another run made the same content; its figures would let it pass."""
    snapshot = world.snapshot("s", world.balanced(20))
    withdrawn = write_package(world.folder / "withdrawn", weights=RIGHT)
    found = world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, snapshot), withdrawn=withdrawn)
    assert (found.verdict, found.accepted, found.champion_version) == ("rolled_back", False, 3)
    assert "version 4 is, which was rolled back from, to version 3, at 2024-01-02T10:00:00 UTC" in found.reason
    registered = Registered(model="colours", version=4, package_digest="0" * 64, tracking_run_id="")
    with pytest.raises(GateRejected, match=r"rolled back from\. .* `darkroom promote 4 --model colours`"):
        gate(found, registered)


def test_other_content_than_what_was_rolled_back_from_is_judged(world: World) -> None:
    snapshot = world.snapshot("s", world.balanced(20))
    withdrawn = write_package(world.folder / "withdrawn", weights=RIGHT * 2)
    assert world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, snapshot), withdrawn=withdrawn).accepted


def test_images_that_the_champion_learned_do_not_judge(world: World) -> None:
    rows = world.balanced(20)
    learned = [{**row, "split": split} for row, split in zip(rows[:10], ["train", "val"] * 5, strict=True)]
    snapshot, older = world.snapshot("new", rows), world.snapshot("old", learned)
    assert world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, older)).num_images == 50


def test_near_duplicates_of_what_the_champion_learned_do_not_judge(world: World) -> None:
    rows = world.balanced(20)
    hashes = [int(str(row["image_id"])[:16], 16) for row in rows]
    # One within 4 bits of a test image and one 5 bits away, neither in the candidate's snapshot.
    learned = [
        {"image_id": "a" * 64, "label": "red", "split": "train", "phash": hashes[0] ^ 0b1111},
        {"image_id": "b" * 64, "label": "red", "split": "train", "phash": hashes[1] ^ 0b11111},
    ]
    snapshot, older = world.snapshot("new", rows), world.snapshot("old", learned)
    assert world.compare(RIGHT, snapshot, champion=(BLIND_TO_BLUE, older)).num_images == 59


def test_groups_that_cross_into_either_train_split_do_not_judge(world: World) -> None:
    rows = world.balanced(20)
    outside = {"image_id": world.image("red", 99), "label": "red"}
    # The champion learned `outside`, which the candidate's snapshot leaves out but groups with a test image.
    rows[0]["group_id"] = outside["image_id"]
    mine = [*rows, {**outside, "split": "excluded"}]
    # The source's own splits may put near-duplicates on both sides of the candidate itself.
    mine.append({"image_id": world.image("red", 98), "label": "red", "split": "train", "group_id": rows[1]["image_id"]})
    older = world.snapshot("old", [{**outside, "split": "train"}])
    assert world.compare(RIGHT, world.snapshot("new", mine), champion=(BLIND_TO_BLUE, older)).num_images == 58


def test_a_hash_that_finds_everything_alike_only_counts_equal_bytes(world: World) -> None:
    rows = [{**row, "phash": 7} for row in world.balanced(20)]
    older = world.snapshot("old", [{**row, "split": "train"} for row in rows[:5]])
    assert world.compare(RIGHT, world.snapshot("new", rows), champion=(BLIND_TO_BLUE, older)).num_images == 55


def test_classes_match_by_name(world: World) -> None:
    """A champion with its classes in another order is judged by names; a class it does not know is a miss."""
    snapshot = world.snapshot("s", world.balanced(20))
    turned = RIGHT[:, [2, 1, 0]]
    found = world.compare(RIGHT, snapshot, champion=(turned, snapshot), class_names=("blue", "green", "purple"))
    judged = json.loads((world.folder / "judged.json").read_text())
    by_class = np.array(judged["champion_right"]).reshape(3, 20).mean(axis=1)
    assert dict(zip(sorted(COLOURS, key=COLOURS.index), by_class, strict=True)) == {"red": 0, "green": 1, "blue": 1}
    assert found.verdict == "better"


def test_classes_that_neither_model_knows_judge_neither(world: World) -> None:
    """And those that only the champion knows count against a foreign candidate."""
    strange = [{"image_id": world.image("red", seed), "label": "purple", "split": "test"} for seed in range(50, 60)]
    snapshot = world.snapshot("s", [*world.balanced(20), *strange])
    assert world.compare(RIGHT, snapshot).num_images == 60
    world = World(world.folder / "other")
    world.folder.mkdir()
    snapshot = world.snapshot("s", [*world.balanced(20), *strange])
    for seed in range(50, 60):
        world.image("red", seed)
    found = world.compare(RIGHT, snapshot, champion=(RIGHT, snapshot), class_names=("purple", "green", "blue"))
    assert found.num_images == 70
    assert not any(json.loads((world.folder / "judged.json").read_text())["candidate_right"][60:])


@pytest.mark.parametrize("label", [None, "purple"], ids=["no labels", "other classes"])
def test_what_no_image_measures_is_accepted_only_if_a_person_says_so(label: str | None, world: World) -> None:
    snapshot = world.snapshot("s", [{**row, "label": label} for row in world.balanced(5)])
    found = world.compare(RIGHT, snapshot)
    assert (found.verdict, found.accepted, found.num_images) == ("unmeasured", False, 0)
    assert "its accuracy is unknown" in found.reason
    world.folder = world.folder / "again"
    assert world.compare(RIGHT, snapshot, deploy_unmeasured=True).accepted


def test_verdicts_at_their_edges() -> None:
    yes, no = np.ones(1000, bool), np.zeros(1000, bool)
    assert against_champion(yes, yes, 1, Gate(margin=0.003)).name == "not_worse"
    assert against_champion(yes, yes, 1, Gate(margin=0.002)).name == "too_few"
    assert against_champion(no, yes, 1, Gate()).name == "worse"
    slightly = yes.copy()
    slightly[:8] = False
    assert against_champion(slightly, yes, 1, Gate(margin=0.02)).name == "not_worse"
    assert against_champion(slightly, yes, 1, Gate(margin=0.01)).name == "worse"


def test_the_gate_lets_pass_or_says_why_not() -> None:
    registered = Registered(model="colours", version=4, package_digest="0" * 64, tracking_run_id="")
    good = Compared(verdict="not_worse", accepted=True, reason="fine", champion_version=3, num_images=60)
    assert gate(good, registered) == Gated(verdict="not_worse")
    bad = Compared(verdict="worse", accepted=False, reason="61.00% against 80.00%", champion_version=3, num_images=60)
    with pytest.raises(GateRejected, match=r"colours version 4 .* 61.00% against 80.00%") as caught:
        gate(bad, registered)
    assert caught.value.exit_code == 1
