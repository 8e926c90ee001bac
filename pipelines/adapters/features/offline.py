"""Point-in-time reads of Parquet folders: Feast says which row was known, pyarrow reads the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipelines.core.features import ROW_KEYS

if TYPE_CHECKING:
    from dask.dataframe import DataFrame as DaskFrame
    from feast import FeatureStore, FileSource
    from pandas import DataFrame

_VECTOR = "embedding"


def join(store: FeatureStore, entities: pa.Table, features: Sequence[str], rows: pa.Table | None = None) -> DataFrame:
    """What was known of each image at its event time, in no particular order.

    `entities`: image_id, event_timestamp (UTC). `rows` are those of the view, which else are read from its folder.
    """
    job = store.get_historical_features(
        entity_df=entities.select(["image_id", "event_timestamp"]).to_pandas(), features=list(features)
    )
    with _reading((lambda source: _folder(source).to_table()) if rows is None else (lambda _: rows)):
        return job.to_df()


def write_vectors(store: FeatureStore, view: str, entities: pa.Table, path: Path) -> npt.NDArray[np.bool_]:
    """Write a view's vectors as a NumPy file float32 [N, D] in the order of `entities`; returns which were known.

    The others are zeros. Feast joins row numbers in the vectors' place and these are copied file by file: a million
    vectors as pandas objects would take several times their memory.
    """
    fragments = _fragments(store, view)
    keys = [fragment.to_table(columns=list(ROW_KEYS)) for fragment in fragments]
    starts = np.cumsum([0, *(part.num_rows for part in keys)])
    numbers = np.full(entities.num_rows, -1, np.int64)
    if starts[-1]:
        numbered = pa.concat_tables(keys).append_column(_VECTOR, pa.array(np.arange(starts[-1])))
        found = join(store, entities, [f"{view}:{_VECTOR}"], numbered).dropna(subset=[_VECTOR])
        images = entities.column("image_id").combine_chunks()
        places = pc.index_in(pa.array(found["image_id"], images.type), value_set=images)
        numbers[places.to_numpy()] = found[_VECTOR].to_numpy(np.int64)
    _copy(fragments, starts, numbers, path)
    known: npt.NDArray[np.bool_] = numbers >= 0
    return known


def _copy(
    fragments: Sequence[ds.Fragment], starts: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], path: Path
) -> None:
    """Row numbers[i] of all fragments becomes row i of the file."""
    out: np.memmap[Any, np.dtype[np.float32]] | None = None
    for fragment, start, end in zip(fragments, starts[:-1], starts[1:], strict=True):
        places = np.flatnonzero((start <= numbers) & (numbers < end))
        if not places.size:
            continue
        column = fragment.to_table(columns=[_VECTOR]).column(_VECTOR).combine_chunks()
        vectors = column.flatten().to_numpy().reshape(end - start, -1)
        if out is None:
            shape = (len(numbers), vectors.shape[1])
            out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        out[places] = vectors[numbers[places] - start]
    if out is None:
        np.save(path, np.zeros((len(numbers), 0), np.float32))
    else:
        out.flush()


def _fragments(store: FeatureStore, view: str) -> list[ds.Fragment]:
    """The files of a view; none where it was never defined or filled."""
    from feast.errors import FeatureViewNotFoundException

    try:
        return list(_folder(store.get_feature_view(view).batch_source).get_fragments())
    except (FeatureViewNotFoundException, FileNotFoundError):
        return []


def _folder(source: FileSource) -> ds.Dataset:
    from feast import FileSource

    filesystem, path = FileSource.create_filesystem_and_path(source.path, source.s3_endpoint_override)
    return ds.dataset(path.rstrip("/"), filesystem=filesystem, format="parquet")


@contextmanager
def _reading(read: Callable[[FileSource], pa.Table]) -> Iterator[None]:
    """Let Feast read a source by `read`, as one partition.

    Feast's own reader makes a dask partition of every file, and its join then takes 67 s for the 365 files of a year
    (2 s for 10 files); it also needs packages of its own for s3://, which pyarrow reads by itself.
    """
    import dask.dataframe as dd
    from feast.infra.offline_stores import dask as offline

    def frame(source: FileSource, _repository: object) -> DaskFrame:
        table = read(source).to_pandas(split_blocks=True, self_destruct=True)
        found: DaskFrame = dd.from_pandas(table, npartitions=1)  # type: ignore[no-untyped-call]
        return found

    kept = offline._read_datasource
    offline._read_datasource = frame
    try:
        yield
    finally:
        offline._read_datasource = kept
