"""The feature views of one recipe. The name of a view says what computed its rows.

`statistics_view` and `embedding_view` build them for any recipe (the pipeline's adapter calls them); the objects at the
end are those of the default recipe (DARKROOM_DEFAULT_MODEL), for the `feast` command.
"""

from __future__ import annotations

from datetime import timedelta

from feast import FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String

from feature_repo.entities import image
from pipelines import settings
from pipelines.core.features import HOG_COLOR, STATISTICS, STATISTICS_VIEW, project_of, view_prefix

_TYPES = {"float32": Float32, "int64": Int64}


def _source(name: str, view: str, store_uri: str, s3_endpoint_url: str | None) -> FileSource:
    """Parquet, one file an interval. Feast keeps sources by name in a registry that all recipes share."""
    return FileSource(
        name=f"{project_of(name)}_{view}",
        path=f"{store_uri.rstrip('/')}/{view_prefix(name, view)}/",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        s3_endpoint_override=s3_endpoint_url if store_uri.startswith("s3://") else None,
    )


def statistics_view(name: str, store_uri: str, s3_endpoint_url: str | None) -> FeatureView:
    """Brightness, contrast, sharpness, entropy, aspect and size of each image."""
    return FeatureView(
        name=STATISTICS_VIEW,
        entities=[image],
        ttl=timedelta(0),
        schema=[
            Field(name="image_id", dtype=String),
            *(Field(name=statistic, dtype=_TYPES[kind]) for statistic, kind in STATISTICS.items()),
        ],
        source=_source(name, STATISTICS_VIEW, store_uri, s3_endpoint_url),
        description="Statistics of the image's pixels.",
    )


def embedding_view(name: str, view: str, dim: int, store_uri: str, s3_endpoint_url: str | None) -> FeatureView:
    """A unit vector for each image, searched by cosine distance."""
    return FeatureView(
        name=view,
        entities=[image],
        ttl=timedelta(0),
        schema=[
            Field(name="image_id", dtype=String),
            Field(
                name="embedding",
                dtype=Array(Float32),
                vector_index=True,
                vector_length=dim,
                vector_search_metric="cosine",
            ),
        ],
        source=_source(name, view, store_uri, s3_endpoint_url),
        description="Embedding of the image; near vectors are similar pictures.",
    )


_here = settings.load()
image_statistics = statistics_view(_here.default_model, _here.store_uri, _here.s3_endpoint_url)
image_embedding = embedding_view(
    _here.default_model, HOG_COLOR.name, HOG_COLOR.dim, _here.store_uri, _here.s3_endpoint_url
)
