"""Feast, and the online rows that are written without it."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis_server import running_redis

from pipelines.adapters.features import FeastOnlineStore, FeatureRepository, import_feast
from pipelines.adapters.online_store import OnlineStore, allow_search
from pipelines.core.errors import NotFound
from pipelines.core.features import HOG_COLOR, STATISTICS, STATISTICS_VIEW, partition_key
from pipelines.core.storage import Storage, open_storage
from pipelines.settings import SEARCH_ROLE, Settings

DAY = datetime(2024, 1, 1, tzinfo=UTC)
NAMES = iter(f"features-{number}" for number in range(100))


def ids(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{number}".encode()).hexdigest() for number in range(count)]


def keys(image_ids: list[str], day: int, created: int = 100) -> dict[str, pa.Array]:
    stamp = pa.timestamp("us", "UTC")
    return {
        "image_id": pa.array(image_ids),
        "event_timestamp": pa.array([DAY + timedelta(days=day, microseconds=7)] * len(image_ids), stamp),
        "created_timestamp": pa.array([DAY + timedelta(days=created)] * len(image_ids), stamp),
    }


def statistics(image_ids: list[str], day: int, seed: int = 0, created: int = 100) -> pa.Table:
    random = np.random.default_rng(seed)
    columns = {
        name: random.random(len(image_ids)).astype(np.float32)
        if kind == "float32"
        else random.integers(0, 1 << 40, len(image_ids))
        for name, kind in STATISTICS.items()
    }
    return pa.table({**keys(image_ids, day, created), **columns})


def vectors(image_ids: list[str], day: int, seed: int = 0, created: int = 100) -> tuple[pa.Table, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(len(image_ids), HOG_COLOR.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return pa.table({**keys(image_ids, day, created), "embedding": pa.array(list(rows), pa.list_(pa.float32()))}), rows


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


@pytest.fixture
def repository(postgres_settings: Settings, storage: Storage) -> FeatureRepository:
    return FeatureRepository(
        recipe=next(NAMES), database_url=postgres_settings.database_url("feast"), store_uri=storage.uri
    )


@pytest.fixture
def online(repository: FeatureRepository) -> OnlineStore:
    repository.ensure(HOG_COLOR)
    return OnlineStore(repository.database_url, repository.recipe)


@pytest.fixture
def database(postgres_settings: Settings) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_settings.database_url("feast"), autocommit=True) as connection:
        yield connection


def stored(database: psycopg.Connection, online: OnlineStore, view: str) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT entity_key, feature_name, value, value_text, vector_value::text, event_ts, created_ts "
        f'FROM "{online.table(view)}" ORDER BY entity_key, feature_name'
    ).fetchall()


def put(storage: Storage, name: str, view: str, interval: str, rows: pa.Table, tmp_path: Path) -> None:
    pq.write_table(rows, tmp_path / "part.parquet")
    storage.write_file(partition_key(name, view, interval), tmp_path / "part.parquet")


def test_rows_are_what_feast_itself_writes(
    repository: FeatureRepository, online: OnlineStore, database: psycopg.Connection
) -> None:
    images = ids(40)
    tables = {STATISTICS_VIEW: statistics(images, 3), HOG_COLOR.name: vectors(images, 3)[0]}
    tables[STATISTICS_VIEW] = tables[STATISTICS_VIEW].set_column(
        3, "brightness", pa.array([0.0, 1.0, 1e-7, 0.1] * 10, pa.float32())
    )
    store = repository.open()
    for view, rows in tables.items():
        store.write_to_online_store(view, rows.to_pandas())
        theirs = stored(database, online, view)
        database.execute(f'TRUNCATE "{online.table(view)}"')
        with online.loading(view, len(images), HOG_COLOR.dim if view == HOG_COLOR.name else None) as writer:
            writer.write(rows)
        assert stored(database, online, view) == theirs
        assert len(theirs) == len(images) * (rows.num_columns - 3)
    read = store.get_online_features(
        features=[f"{STATISTICS_VIEW}:size_px"], entity_rows=[{"image_id": images[5]}]
    ).to_dict()
    assert read["size_px"] == [tables[STATISTICS_VIEW]["size_px"][5].as_py()]


def test_definitions_are_applied_once_whoever_comes_together(repository: FeatureRepository) -> None:
    applied: list[bool] = []
    threads = [threading.Thread(target=lambda: applied.append(repository.ensure(HOG_COLOR))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [False, False, True]
    assert replace(repository, store_uri=repository.store_uri + "2").ensure(HOG_COLOR), "another place: changed"
    views = {view.name: view for view in repository.open().list_feature_views()}
    assert set(views) == {STATISTICS_VIEW, HOG_COLOR.name}
    assert views[HOG_COLOR.name].features[0].vector_index
    assert {service.name for service in repository.open().list_feature_services()} == {
        "training_set",
        f"similar_{HOG_COLOR.name}",
    }


def test_writing_twice_changes_nothing_and_the_newest_event_stays(
    online: OnlineStore, database: psycopg.Connection
) -> None:
    images = ids(20)
    rows = statistics(images, day=5, seed=1)
    for _ in range(2):
        with online.loading(STATISTICS_VIEW, len(images), None) as writer:
            writer.write(rows.slice(0, 8))
            writer.write(rows.slice(8))
        first = stored(database, online, STATISTICS_VIEW)
    with online.loading(STATISTICS_VIEW, len(images), None) as writer:
        writer.write(statistics(images, day=4, seed=2))
    assert stored(database, online, STATISTICS_VIEW) == first
    with online.loading(STATISTICS_VIEW, len(images), None) as writer:
        writer.write(statistics(images, day=6, seed=3))
    assert stored(database, online, STATISTICS_VIEW) != first
    online.remove(STATISTICS_VIEW, images[:5], DAY + timedelta(days=6))
    assert len(stored(database, online, STATISTICS_VIEW)) == 20 * len(STATISTICS), "newer than the withdrawal"
    online.remove(STATISTICS_VIEW, images[:5], DAY + timedelta(days=7))
    assert len(stored(database, online, STATISTICS_VIEW)) == 15 * len(STATISTICS)


def test_the_nearest_are_the_nearest(online: OnlineStore, database: psycopg.Connection) -> None:
    images = ids(1500)
    rows, matrix = vectors(images, day=1)
    for part in (rows.slice(0, 900), rows.slice(900)):
        with online.loading(HOG_COLOR.name, part.num_rows, HOG_COLOR.dim) as writer:
            writer.write(part)
    assert database.execute(
        "SELECT indexdef LIKE '%%hnsw%%vector_cosine_ops%%' FROM pg_indexes "
        "WHERE tablename = %s AND indexname LIKE '%%hnsw'",
        (online.table(HOG_COLOR.name),),
    ).fetchall() == [(True,)]
    found_by_index = 0
    for query in range(0, 1500, 150):
        best = np.argsort(-(matrix @ matrix[query]), kind="stable")[:10]
        found = online.nearest(HOG_COLOR.name, matrix[query], 10)
        assert [one.image_id for one in found] == [images[row] for row in best]
        np.testing.assert_allclose([one.similarity for one in found], (matrix @ matrix[query])[best], atol=1e-5)
        indexed = online.nearest(HOG_COLOR.name, matrix[query], 10, exact=False)
        assert indexed[0].image_id == images[query]
        found_by_index += len({one.image_id for one in indexed} & {images[row] for row in best})
    assert found_by_index >= 80, "random vectors are an index's hardest case"


def test_what_was_stored_before_can_be_searched_too(
    online: OnlineStore, database: psycopg.Connection, postgres_settings: Settings
) -> None:
    rows, _ = vectors(ids(5), day=1)
    with online.loading(HOG_COLOR.name, 5, HOG_COLOR.dim) as writer:
        writer.write(rows)
    search = f'SELECT count(vector_value) FROM "{online.table(HOG_COLOR.name)}"'
    others = f'SELECT count(*) FROM "{online.table(STATISTICS_VIEW)}"'
    database.execute(f'REVOKE ALL ON "{online.table(HOG_COLOR.name)}" FROM {SEARCH_ROLE}')
    with psycopg.connect(postgres_settings.search_database_url, autocommit=True) as reader:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(search)
        for _ in range(2):
            allow_search(postgres_settings.database_url("feast"), SEARCH_ROLE)
            assert reader.execute(search).fetchone() == (5,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(others)
    # A server of others may have no such role: then nothing is given to anybody.
    allow_search(postgres_settings.database_url("feast"), "of-nobody")


def test_a_search_before_anything_is_stored_says_what_to_do(postgres_settings: Settings) -> None:
    store = OnlineStore(postgres_settings.database_url("feast"), "never-there")
    with pytest.raises(NotFound, match=r"never_there_image_embedding_hog_color_v1.*darkroom run"):
        store.nearest(HOG_COLOR.name, np.ones(HOG_COLOR.dim, np.float32), 3)


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "s3"])
def test_features_are_as_they_were_known_at_the_event(
    repository: FeatureRepository, storage: Storage, tmp_path: Path, remote: bool, request: pytest.FixtureRequest
) -> None:
    if remote:
        endpoint = request.getfixturevalue("s3_endpoint")
        uri = f"s3://{endpoint.bucket()}/store"
        storage = open_storage(uri, endpoint_url=endpoint.url)
        repository = replace(repository, store_uri=uri, s3_endpoint_url=endpoint.url)
    images = ids(6)
    days = {1: statistics(images[:4], 1, seed=1), 2: statistics(images[2:], 2, seed=2)}
    again = statistics(images[:4], 1, seed=9, created=101)
    put(storage, repository.recipe, STATISTICS_VIEW, "2024-01-02", days[1], tmp_path)
    put(storage, repository.recipe, STATISTICS_VIEW, "2024-01-03", days[2], tmp_path)
    repository.ensure(HOG_COLOR)

    def known(day: int) -> dict[str, float | None]:
        stamps = keys(images, day)["event_timestamp"]
        rows = repository.historical(pa.table({"image_id": images, "event_timestamp": stamps}), ["sharpness"])
        values = rows["sharpness"].to_pylist()
        return {
            image: None if value is None else float(value)
            for image, value in zip(rows["image_id"].to_pylist(), values, strict=True)
        }

    def of(day: int) -> dict[str, float]:
        return dict(zip(days[day]["image_id"].to_pylist(), days[day]["sharpness"].to_pylist(), strict=True))

    nothing = dict.fromkeys(images)
    assert known(0) == nothing
    assert known(1) == {**nothing, **of(1)}
    assert known(2) == {**of(1), **of(2)}
    put(storage, repository.recipe, STATISTICS_VIEW, "2024-01-02", again, tmp_path)
    days[1] = again
    assert known(2) == {**of(1), **of(2)}, "an interval that is computed again replaces its part"


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "s3"])
def test_embeddings_are_as_they_were_known_at_the_event(
    repository: FeatureRepository, storage: Storage, tmp_path: Path, remote: bool, request: pytest.FixtureRequest
) -> None:
    if remote:
        endpoint = request.getfixturevalue("s3_endpoint")
        uri = f"s3://{endpoint.bucket()}/store"
        storage = open_storage(uri, endpoint_url=endpoint.url)
        repository = replace(repository, store_uri=uri, s3_endpoint_url=endpoint.url)
    images = ids(7)
    asked = images[::-1]
    path = tmp_path / "embeddings.npy"

    def known(day: int) -> dict[str, np.ndarray]:
        entities = pa.table({"image_id": asked, "event_timestamp": keys(asked, day)["event_timestamp"]})
        found = repository.embeddings(entities, HOG_COLOR.name, path)
        rows = np.load(path)
        assert rows.dtype == np.float32
        assert not rows[~found].any()
        return {image: row for image, row, there in zip(asked, rows, found, strict=True) if there}

    assert known(5) == {}, "a view that nobody has defined"
    repository.ensure(HOG_COLOR)
    assert known(5) == {}, "a view without rows"
    first, second = vectors(images[:4], 1, seed=1), vectors(images[2:6], 2, seed=2)
    put(storage, repository.recipe, HOG_COLOR.name, "2024-01-02", first[0], tmp_path)
    put(storage, repository.recipe, HOG_COLOR.name, "2024-01-03", second[0], tmp_path)
    old = dict(zip(images[:4], first[1], strict=True))
    new = dict(zip(images[2:6], second[1], strict=True))
    for day, expected in ((0, {}), (1, old), (2, {**old, **new})):
        found = known(day)
        assert found.keys() == expected.keys()
        for image, row in expected.items():
            assert (found[image] == row).all()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with running_redis(tmp_path / "redis") as server:
        yield f"127.0.0.1:{server.port},db=0"


def test_redis_can_be_the_online_store(repository: FeatureRepository, redis: str) -> None:
    repository = replace(repository, redis_url=redis)
    repository.ensure(HOG_COLOR)
    images = ids(6)
    online = FeastOnlineStore(repository)
    for view, rows in ((STATISTICS_VIEW, statistics(images, 3)), (HOG_COLOR.name, vectors(images, 3)[0])):
        with online.loading(view, len(images), None) as writer:
            writer.write(rows)
    online.remove(STATISTICS_VIEW, images[:2], DAY + timedelta(days=3))
    online.remove(STATISTICS_VIEW, images[2:4], DAY + timedelta(days=4))
    features = [f"{STATISTICS_VIEW}:size_px", f"{HOG_COLOR.name}:embedding"]
    read = repository.open().get_online_features(features, [{"image_id": image} for image in images]).to_dict()
    assert [value is None for value in read["size_px"]] == [False, False, True, True, False, False]
    assert all(len(value) == HOG_COLOR.dim for value in read["embedding"])


def test_a_process_that_needs_torch_still_gets_it() -> None:
    import_feast()
    import torch
    import typeguard

    assert sys.modules["torch"] is torch
    assert torch.ones(2).sum().item() == 2
    assert typeguard.typechecked.__module__.startswith("typeguard")
