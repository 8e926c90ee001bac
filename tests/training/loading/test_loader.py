"""The loader: every image once an epoch, whatever the strategy, the processes or the restarts."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
import torch

from pipelines.core.errors import RecipeError, UserError
from pipelines.core.pixelset import EncodedImages, Rows, Split
from pipelines.core.recipe import Recipe, from_dict, override
from pipelines.training.augmentation.geometry import size_at
from pipelines.training.batch import Batch
from pipelines.training.loading import Loader, loader
from pipelines.training.loading.strategies import choose

CPU = torch.device("cpu")
NUM_IMAGES = 42
RECIPE = from_dict(
    {
        "name": "photographs",
        "preprocessing": {"height": 24, "width": 32},
        "training": {"batch_size": 16, "threads": 1, "epochs": 4},
        "augmentation": {"crop": "resized", "erasing": 0.3},
        "loading": {"margin": 1.5, "workers": 2},
    }
)
STRATEGIES = ("resident", "mapped", "stream")


@contextmanager
def _opened(split: Split, recipe: Recipe, **where: int) -> Iterator[Loader]:
    opened = Loader(split, recipe, NUM_IMAGES, CPU, **where)
    try:
        yield opened
    finally:
        opened.close()


def _batches(split: Split, recipe: Recipe, epoch: int = 0, first: int = 0, **where: int) -> list[Batch]:
    with _opened(split, recipe, **where) as opened:
        return list(opened.batches(epoch, first=first))


def _asking(strategy: str, **changes: Any) -> Recipe:
    return override(RECIPE, {"loading.strategy": strategy, **changes})


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    """The same photographs, stored for each strategy; an image's label is its row."""
    folder = tmp_path_factory.mktemp("pixels")
    images = [photographs.photograph(number) for number in range(NUM_IMAGES)]
    return {
        strategy: photographs.write_pixel_set(folder, _asking(strategy), images).splits["train"]
        for strategy in STRATEGIES
    }


def _same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)
        for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_comes_once_an_epoch_in_another_order(splits: dict[str, Split], strategy: str) -> None:
    recipe = _asking(strategy)
    epochs = [_batches(splits[strategy], recipe, epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [14, 14, 14] == [batch.num_global for batch in batches]
        assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(NUM_IMAGES))
        for batch in batches:
            assert batch.pixels.shape == (14, 24, 32, 3)
            assert (batch.pixels.dtype, batch.labels.dtype, batch.weights.dtype) == (
                torch.uint8,
                torch.int64,
                torch.float32,
            )
    assert not _same(*epochs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restart_in_the_middle_of_an_epoch_goes_on_with_the_same_batches(
    splits: dict[str, Split], strategy: str
) -> None:
    recipe = _asking(strategy, **{"augmentation.mixup": 0.2, "augmentation.cutmix": 1.0})
    whole = _batches(splits[strategy], recipe, 2)
    assert _same(_batches(splits[strategy], recipe, 2), whole)
    assert _same(_batches(splits[strategy], recipe, 2, first=1), whole[1:])
    assert _batches(splits[strategy], recipe, 2, first=3) == []


def test_resident_and_mapped_pixels_are_the_same(splits: dict[str, Split]) -> None:
    batches = [_batches(splits["mapped"], _asking(strategy)) for strategy in ("resident", "mapped")]
    assert _same(*batches)


def test_streamed_pixels_show_the_same_parts_of_the_same_images(
    splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws depend on rows and sizes alone, so that in the same order the pictures differ by how they were decoded."""
    monkeypatch.setattr(loader.order, "shuffled_in_blocks", loader.order.shuffled)
    pairs = zip(*(_batches(splits[one], _asking(one)) for one in ("mapped", "stream")), strict=True)
    for mapped, streamed in pairs:
        assert torch.equal(mapped.labels, streamed.labels)
        assert (mapped.pixels.int() - streamed.pixels.int()).abs().float().mean() < 4


def test_what_is_cut_from_shards_is_hardly_softer_than_what_is_cut_from_files(tmp_path: Path) -> None:
    """It has been reduced before; evaluation sees all the contrast that files have, and so should a network learn."""
    large = {"augmentation.erasing": 0.0, "augmentation.min_area": 0.7, "loading.margin": 1.25}  # nothing is enlarged
    found = []
    for strategy in ("mapped", "stream"):
        recipe = _asking(strategy, **large)
        split = photographs.write_pixel_set(tmp_path, recipe, [photographs.texture(one) for one in range(20)])
        pixels = torch.cat([batch.pixels for batch in _batches(split.splits["train"], recipe)]).float()
        found.append((pixels.diff(dim=1) ** 2).mean() + (pixels.diff(dim=2) ** 2).mean())
    mapped, streamed = found
    assert 0.9 < mapped / streamed < 1.1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mixed", [False, True])
def test_processes_share_the_batches_of_one(splits: dict[str, Split], strategy: str, mixed: bool) -> None:
    recipe = _asking(strategy, **({"augmentation.mixup": 0.2, "augmentation.cutmix": 1.0} if mixed else {}))
    alone = _batches(splits[strategy], recipe)
    shares = [_batches(splits[strategy], recipe, rank=rank, world_size=3) for rank in range(3)]
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        assert [len(part) for part in parts] == ([6, 4, 4] if mixed else [5, 5, 4])
        assert {part.num_global for part in parts} == {14}
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_grow_with_the_epochs(splits: dict[str, Split], strategy: str) -> None:
    recipe = _asking(strategy, **{"augmentation.start_size": 0.5})
    for epoch in (0, 3):
        sides = size_at(epoch, 4, 24, 32, recipe.augmentation)
        assert _batches(splits[strategy], recipe, epoch)[0].pixels.shape[1:3] == sides
    assert sides == (24, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("crop", ["resized", "shift"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_s_batches_are_those_of_a_cpu(strategy: str, crop: str, tmp_path: Path) -> None:
    """Crops are rounded once more on a CPU; a stream's crops, and all shifts, are the same bytes."""
    recipe = _asking(strategy, **{"augmentation.crop": crop, "augmentation.cutmix": 1.0})
    images = [photographs.photograph(number) for number in range(NUM_IMAGES)]
    split = photographs.write_pixel_set(tmp_path, recipe, images).splits["train"]
    found = {}
    for device in (CPU, torch.device("cuda", 0)):
        opened = Loader(split, recipe, NUM_IMAGES, device)
        assert opened.strategy == strategy
        found[device.type] = [batch for epoch in (0, 1) for batch in opened.batches(epoch)]
        torch.cuda.synchronize()
        opened.close()
    for on_cpu, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        assert on_gpu.pixels.device.type == on_gpu.labels.device.type == "cuda"
        assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
        assert torch.equal(on_gpu.weights.cpu(), on_cpu.weights)
        assert on_cpu.other_labels is not None
        assert on_gpu.other_labels is not None
        assert torch.equal(on_gpu.other_labels.cpu(), on_cpu.other_labels)
        difference = (on_gpu.pixels.cpu().int() - on_cpu.pixels.int()).abs()
        same = crop == "shift" or strategy == "stream"
        assert int(difference.max()) <= (0 if same else 1)


def test_shifted_images_are_evaluation_pixels_moved_when_streamed_too(tmp_path: Path) -> None:
    images = [photographs.photograph(number) for number in range(6)]
    shifted = {"augmentation.crop": "shift", "augmentation.flip": "none", "training.batch_size": 6}
    batches = []
    for strategy in ("resident", "stream"):
        recipe = _asking(strategy, **shifted)
        split = photographs.write_pixel_set(tmp_path, recipe, images).splits["train"]
        (batch,) = _batches(split, override(recipe, {"augmentation.shift_share": 0.0, "augmentation.erasing": 0.0}))
        batches.append({int(label): pixels for label, pixels in zip(batch.labels, batch.pixels, strict=True)})
        assert isinstance(split.images, EncodedImages) is (strategy == "stream")
    assert all(torch.equal(batches[0][label], batches[1][label]) for label in range(6))


def test_an_image_that_does_not_decode_is_replaced_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [photographs.photograph(number) for number in range(NUM_IMAGES)]
    broken = (7, 8, 30)
    for row in broken:
        images[row] = images[row][:-150]  # as a copy that was cut short
    split = photographs.write_pixel_set(tmp_path, _asking("stream"), images).splits["train"]
    with _opened(split, _asking("stream")) as opened:
        epochs = [list(opened.batches(epoch)) for epoch in (0, 1, 0)]
        files = [f"blobs/{row:04d}" for row in broken]
        assert sorted(failure.split(":")[0] for failure in opened.failures) == files, "the file, not the image's id"
        assert "truncated" in opened.failures[0]
    assert sorted(record.getMessage().split()[1] for record in caplog.records) == files
    assert _same(epochs[0], epochs[2])
    for batches in epochs:
        seen = torch.cat([batch.labels for batch in batches]).tolist()
        assert len(seen) == NUM_IMAGES
        assert set(seen) == set(range(NUM_IMAGES)) - set(broken)


def _broken(folder: Path, broken: Container[int], recipe: Recipe) -> tuple[list[Batch], list[Batch]]:
    """The first epoch of the same photographs, whole and with some of them cut short."""
    images = [photographs.photograph(number) for number in range(NUM_IMAGES)]
    damaged = [data[:-150] if row in broken else data for row, data in enumerate(images)]
    epochs = []
    for number, stored in enumerate((images, damaged)):
        (folder / str(number)).mkdir()
        epochs.append(
            _batches(photographs.write_pixel_set(folder / str(number), recipe, stored).splits["train"], recipe)
        )
    return epochs[0], epochs[1]


def test_a_replacement_s_pixels_are_those_of_the_row_that_its_label_is_of(tmp_path: Path) -> None:
    broken = {7, 8, 30}
    whole, damaged = _broken(tmp_path, broken, _asking("stream", **{"augmentation.erasing": 0.0}))
    num_replaced = 0
    for clean, batch in zip(whole, damaged, strict=True):
        pixels_of = dict(zip(clean.labels.tolist(), clean.pixels, strict=True))
        for asked, label, pixels in zip(clean.labels.tolist(), batch.labels.tolist(), batch.pixels, strict=True):
            assert (label == asked) == (asked not in broken)
            assert torch.equal(pixels, pixels_of[label])
            num_replaced += label != asked
    assert num_replaced == 3


def test_where_a_whole_part_is_damaged_those_that_come_next_take_its_place(tmp_path: Path) -> None:
    recipe = _asking("stream")
    (tmp_path / "order").mkdir()
    images = [photographs.photograph(number) for number in range(NUM_IMAGES)]
    ordered = _batches(photographs.write_pixel_set(tmp_path / "order", recipe, images).splits["train"], recipe)
    whole, damaged = _broken(tmp_path, set(ordered[0].labels.tolist()), recipe)
    assert damaged[0].labels.tolist() == whole[1].labels.tolist()
    assert _same(damaged[1:], whole[1:])


def test_a_batch_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    images = [photographs.photograph(number) for number in range(8)]
    images = [data[:-150] for data in images]
    split = photographs.write_pixel_set(tmp_path, _asking("stream"), images).splits["train"]
    with _opened(split, _asking("stream")) as opened, pytest.raises(UserError, match="none of 8 images"):
        list(opened.batches(0))


@pytest.mark.parametrize("strategy", ["mapped", "stream"])
def test_batches_are_fetched_while_one_is_computed_on_and_no_more_than_there_is_room_for(
    splits: dict[str, Split], strategy: str
) -> None:
    recipe = _asking(strategy, **{"training.batch_size": 6})
    with _opened(splits[strategy], recipe) as opened:
        source, done = opened._source, threading.Semaphore(0)
        fetched: list[int] = []
        num_seen = 0

        class Watched:
            def fetch(self, rows: Rows, *others: Any) -> tuple[torch.Tensor, Rows]:
                fetched.append(len(rows))
                found = source.fetch(rows, *others)
                done.release()
                return found

        opened._source = Watched()
        for number, _ in enumerate(opened.batches(0)):
            # The consumer holds a batch and asks for nothing: those that come next are fetched all the same.
            while num_seen < min(number + 1 + loader.DEPTH, opened.steps_per_epoch):
                assert done.acquire(timeout=30), f"while batch {number} was held, {num_seen} were fetched"
                num_seen += 1
            assert len(fetched) <= number + 1 + loader.DEPTH
        assert len(fetched) == opened.steps_per_epoch == 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_thread_is_left(splits: dict[str, Split], strategy: str) -> None:
    before = set(threading.enumerate())
    with _opened(splits[strategy], _asking(strategy)) as opened:
        batches = opened.batches(0)
        next(batches)
        # Else the last assertion would hold whatever `close` does.
        assert (set(threading.enumerate()) == before) is (strategy == "resident")
        batches.close()  # type: ignore[attr-defined]
        assert len(list(opened.batches(1))) == 3
    assert set(threading.enumerate()) == before


def test_a_strategy_that_the_stored_images_cannot_satisfy_is_refused(splits: dict[str, Split]) -> None:
    with pytest.raises(RecipeError, match=r"loading\.strategy = 'mapped': .*'stream' or 'auto'"):
        Loader(splits["stream"], _asking("mapped"), NUM_IMAGES, CPU)
    with pytest.raises(RecipeError, match=r"loading\.strategy = 'stream': .*prepare them again"):
        Loader(splits["mapped"], _asking("stream"), NUM_IMAGES, CPU)


def test_images_that_do_not_fit_on_the_gpu_are_refused(
    splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.training.loading.strategies._free_bytes", lambda device: 1000)
    with pytest.raises(RecipeError, match=r"loading\.strategy = 'resident': .* set 'mapped' or 'auto'"):
        choose(splits["mapped"].images, "resident", torch.device("cuda"))
    assert choose(splits["mapped"].images, "resident", CPU) == "resident"


def test_auto_takes_what_is_stored_and_what_fits(splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch) -> None:
    with _opened(splits["stream"], _asking("auto")) as opened:
        assert opened.strategy == "stream"
    with _opened(splits["mapped"], _asking("auto")) as opened:
        assert opened.strategy == "resident"
    monkeypatch.setattr("pipelines.training.loading.strategies._free_bytes", lambda device: 1000)
    with _opened(splits["mapped"], _asking("auto")) as opened:
        assert opened.strategy == "mapped"


def test_more_processes_than_images_a_step_are_refused(splits: dict[str, Split]) -> None:
    with pytest.raises(UserError, match=r"training\.batch_size = 16: .*processes \(15\)"):
        Loader(splits["mapped"], _asking("auto"), NUM_IMAGES, CPU, world_size=15)
    mixed = _asking("auto", **{"augmentation.mixup": 0.2})
    with pytest.raises(UserError, match=r"training\.batch_size = 16: .*pairs .*processes \(8\)"):
        Loader(splits["mapped"], mixed, NUM_IMAGES, CPU, world_size=8)


def test_class_balance_weighs_by_the_inverse_of_the_size(splits: dict[str, Split]) -> None:
    labels = np.array([0] * 30 + [1] * 12, np.int64)
    split = dataclasses.replace(splits["mapped"], labels=labels)
    balanced = loader.sample_weights(split, 3, class_balance=True)
    assert balanced.dtype == np.float32
    assert balanced.mean() == pytest.approx(1)
    assert balanced[:30].sum() == pytest.approx(balanced[30:].sum())
    weighted = dataclasses.replace(split, weights=np.linspace(1, 3, NUM_IMAGES).astype(np.float32))
    assert np.allclose(loader.sample_weights(weighted, 3, class_balance=False), weighted.weights / 2)
