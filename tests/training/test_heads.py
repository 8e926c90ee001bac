"""A linear head on stored embeddings: the optimum, the same bits, and the network that computes it from pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_datasets import COLOURS, picture

from pipelines.core import embedded, pixelset
from pipelines.core.embedded import EmbeddedSplit
from pipelines.core.embedding import HogColorV1
from pipelines.core.errors import IntegrityError, RecipeError, SourceError
from pipelines.core.features import HOG_COLOR
from pipelines.core.pixelset import PixelSet
from pipelines.core.recipe import Recipe, Training, from_dict
from pipelines.training import heads, logistic
from pipelines.training.__main__ import main
from pipelines.training.devices import Compute
from pipelines.training.logistic import Head, Problem, search
from pipelines.training.observers import HistoryFile, Observer, best_epoch

CPU = torch.device("cpu")
PLAIN = Training(label_smoothing=0.0, weight_decay=0.02)
RECIPE = from_dict({"name": "colours", "training": {"mode": "head", "threads": 1, "device": "cpu"}})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _rows(num_rows: int = 90, seed: int = 0) -> EmbeddedSplit:
    """Three overlapping classes in five dimensions, one of which never changes."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 3
    found = random.normal(size=(num_rows, 5)) * [1, 3, 0.1, 1, 0] + labels[:, None] * [1, 0, 0.1, 0, 0] + 2
    return EmbeddedSplit(
        embeddings=found.astype(np.float32), labels=labels, weights=random.uniform(0.5, 2, num_rows).astype(np.float32)
    )


def _solve(split: EmbeddedSplit, training: Training, val: EmbeddedSplit | None = None) -> tuple[Sequence[object], Head]:
    return search(Problem(split, training, 3, CPU), val, training, [])


def test_the_optimum_is_scikit_learn_s() -> None:
    split = _rows()
    _, head = _solve(split, PLAIN)
    scaler = StandardScaler().fit(split.embeddings.astype(np.float64))
    weights = split.weights / split.weights.sum()
    model = LogisticRegression(C=1 / PLAIN.weight_decay, tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(split.embeddings.astype(np.float64)), split.labels, sample_weight=weights)
    np.testing.assert_allclose(head.weight.numpy(), model.coef_ / scaler.scale_, atol=1e-3)
    logits = split.embeddings.astype(np.float64) @ head.weight.numpy().T + head.bias.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = model.predict_proba(scaler.transform(split.embeddings.astype(np.float64)))
    np.testing.assert_allclose(shares, expected, atol=1e-4)


def test_the_gradient_is_that_of_the_loss() -> None:
    training = Training(label_smoothing=0.1)
    problem = Problem(_rows(), training, 3, CPU)
    weight, bias = (torch.randn_like(one) for one in problem.start())
    problem.gradient(weight, bias, 0.3)
    for tensor, place in ((weight, (1, 2)), (bias, (0,))):
        assert tensor.grad is not None
        step, found = 1e-6, float(tensor.grad[place])
        losses = []
        for sign in (1, -1):
            tensor[place] += sign * step
            losses.append(float(problem.gradient(weight, bias, 0.3)))
            tensor[place] -= sign * step
        assert found == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_blocks_change_nothing_but_rounding_and_repeats_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    split = _rows()
    heads_found = [_solve(split, PLAIN)[1] for _ in range(2)]
    assert torch.equal(heads_found[0].weight, heads_found[1].weight)
    assert torch.equal(heads_found[0].bias, heads_found[1].bias)
    monkeypatch.setattr(logistic, "_BLOCK_BYTES", 2000)
    _, blocked = _solve(split, PLAIN)
    np.testing.assert_allclose(blocked.weight, heads_found[0].weight, atol=1e-5)


def test_a_weight_counts_an_image_as_often_and_balance_makes_classes_equal() -> None:
    split = replace(_rows(), weights=np.where(np.arange(90) < 30, 2, 1).astype(np.float32))
    again = np.r_[np.arange(90), np.arange(30)]
    twice = EmbeddedSplit(
        embeddings=split.embeddings[again], labels=split.labels[again], weights=np.ones(120, np.float32)
    )
    # Rows are standardized unweighted: compare what does not depend on the scale of the decay.
    free = replace(PLAIN, weight_decay=0.0)
    first, second = (_solve(one, free)[1] for one in (split, twice))
    np.testing.assert_allclose(first.weight, second.weight, atol=1e-3)
    rare = np.r_[np.flatnonzero(split.labels != 2), np.flatnonzero(split.labels == 2)[:6]]
    lopsided = EmbeddedSplit(
        embeddings=split.embeddings[rare], labels=split.labels[rare], weights=np.ones(len(rare), np.float32)
    )
    shares = []
    for balance in (False, True):
        _, head = _solve(lopsided, replace(PLAIN, class_balance=balance))
        logits = torch.from_numpy(lopsided.embeddings).double() @ head.weight.T + head.bias
        shares.append(float((logits.argmax(dim=1) == 2).double().mean()))
    assert shares[0] < shares[1]


def test_the_decay_is_chosen_on_validation_unless_it_is_given() -> None:
    train, val = _rows(60, seed=1), _rows(300, seed=2)
    history, head = _solve(train, Training(), val)
    losses = [one.val_loss for one in history]  # type: ignore[attr-defined]
    assert len(history) >= 2
    best = best_epoch(history)  # type: ignore[arg-type]
    chosen = history[best - 1].weight_decay  # type: ignore[attr-defined]
    assert losses[best - 1] == min(losses)
    _, alone = _solve(train, Training(weight_decay=chosen), val)
    np.testing.assert_allclose(head.weight, alone.weight, atol=1e-3)
    assert len(_solve(train, Training())[0]) == 1, "nothing to judge by: the prior's decay"


def _colours(folder: Path, num_train: int = 60, num_val: int = 30) -> PixelSet:
    """Pictures of three colours, as `prepare` leaves them."""
    sizes = {"train": num_train, "val": num_val}
    for split, num_rows in sizes.items():
        names = [list(COLOURS)[row % 3] for row in range(num_rows)]
        pixels = np.stack(
            [np.asarray(picture(row + 1000 * (split == "val"), COLOURS[name], 32)) for row, name in enumerate(names)]
        )
        labels = [row % 3 for row in range(num_rows)]
        pixelset.write_split(
            folder, split, labels=labels, weights=[1.0] * num_rows, ids=[f"{row:03d}" for row in range(num_rows)]
        )
        np.save(embedded.embeddings_file(folder, split), HogColorV1().embed(pixels))
        if split == "val":
            pixelset.create_pixels(folder, split, num_rows, 32, 32, whole=False)
            files = pixelset.PixelFiles(folder, split)
            for row, image in enumerate(pixels):
                files.write(row, image, 32, 32)
    pixelset.write_index(folder, class_names=list(COLOURS), preprocessing={}, splits={"val": num_val})
    embedded.write_index(folder, view=HOG_COLOR.name, splits=sizes)
    return pixelset.load(folder)


def _train(data: PixelSet, out: Path, recipe: Recipe = RECIPE, observers: Sequence[Observer] = ()) -> heads.HeadNetwork:
    out.mkdir(exist_ok=True)
    heads.train(data, recipe, Compute(device=CPU), out / "weights.pt", observers)
    return heads.load(out / "weights.pt", recipe.features.embedding)


def test_the_network_answers_from_pixels_what_the_head_learned_from_embeddings(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = _colours(tmp_path / "data")
    network = _train(data, tmp_path / "out", observers=[HistoryFile(tmp_path / "history.json")])
    val = data.splits["val"]
    with torch.inference_mode():
        logits, embedding = network(torch.from_numpy(val.pixels.rows(np.arange(len(val)))))
    assert data.embedded is not None
    np.testing.assert_allclose(embedding, data.embedded.splits["val"].embeddings, atol=1e-5)
    assert (logits.argmax(dim=1).numpy() == val.labels).mean() > 0.9
    assert '"weight_decay"' in (tmp_path / "history.json").read_text()
    _train(data, tmp_path / "again")
    assert (tmp_path / "again" / "weights.pt").read_bytes() == (tmp_path / "out" / "weights.pt").read_bytes()


def test_data_without_these_embeddings_are_refused(tmp_path: Path) -> None:
    data = _colours(tmp_path)
    with pytest.raises(SourceError, match=r"training\.mode = 'head': the data hold no stored embeddings"):
        _train(replace(data, embedded=None), tmp_path)
    assert data.embedded is not None
    with pytest.raises(SourceError, match="embeddings of other_view"):
        _train(replace(data, embedded=replace(data.embedded, view="other_view")), tmp_path)
    np.save(embedded.embeddings_file(tmp_path, "val"), np.array(data.embedded.splits["val"].embeddings[::-1]))
    with pytest.raises(IntegrityError, match="ingest their intervals again"):
        _train(pixelset.load(tmp_path), tmp_path)
    np.save(tmp_path / "train-labels.npy", np.zeros(3, np.int64))
    with pytest.raises(IntegrityError, match=r"split train.*embedded\.json"):
        pixelset.load(tmp_path)


def test_a_head_on_a_package_is_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match=r"features\.embedding = 'package:0+': .*'hog-color-v1' or 'torchvision:"):
        from_dict({"name": "x1", "features": {"embedding": "package:" + "0" * 64}, "training": {"mode": "head"}})


def test_the_command_takes_what_prepare_wrote_and_refuses_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    _colours(tmp_path / "data")
    (tmp_path / "colours.toml").write_text("[training]\nmode = 'head'\nthreads = 1\ndevice = 'cpu'\n")
    arguments = ["--recipe", str(tmp_path / "colours.toml"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--data", str(tmp_path / "data")]) == 0
    assert json.loads(capsys.readouterr().out)["val_accuracy"] > 0.9
    assert (tmp_path / "out" / "weights.pt").is_file()
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    assert "holds no stored embeddings" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path / "data"), "--set", '{"training.mode": "scratch"}']) == 2
    assert "no training images" in capsys.readouterr().err
