"""What steps return. Steps do not import each other; they meet in these frozen values.

Each class says which files lie beside the value in the step's result folder. Times and counts that vary between equal
runs stay out of values (they would change the result's digest); they go into a step's `facts`.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- ingest_images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Planned:
    """`plan`. Files: shard-NNNNN.parquet (uri, label, split, event_timestamp, tombstone), notes.json."""

    interval: str
    num_files: int
    num_shards: int
    source_digest: str
    """Digest of the listing: the same files of the same versions give the same digest."""
    notes: tuple[str, ...] = ()
    """What a person should know, such as class folders without images."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """`ingest`, one shard. Files: images.parquet (manifest and statistics columns), quarantine.parquet."""

    shard: int
    num_images: int
    num_quarantined: int
    size_bytes: int
    num_unread: int = 0
    """Files that may be read another time: missing, unreadable, or their reading ended its process."""


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """`assemble`. Files: manifest.parquet, statistics.parquet, quarantine.parquet."""

    interval: str
    num_images: int
    num_tombstones: int
    num_quarantined: int
    num_files: int
    class_counts: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One expectation that did not hold."""

    expectation: str
    observed: str
    threshold: str
    examples: tuple[str, ...]
    """Source URIs of example files, at most 5."""
    blocking: bool


@dataclass(frozen=True, kw_only=True)
class Validated:
    """`validate`. Files: docs/ (data docs, index.html). Blocking findings end the run with GateRejected instead."""

    interval: str
    num_expectations: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Materialized:
    """`materialize` (effect). Feature rows of the interval are in the offline and online store."""

    interval: str
    num_rows: int
    views: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """`accept` (effect). The dataset's head holds the interval."""

    dataset: str
    interval: str
    head_version: int
    changed: bool
    """False where the head held exactly this manifest before this run."""


# --- train_classifier ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settled:
    """`settle` (effect). How long the dataset has still to be quiet before training."""

    wait_s: float
    trained_by: str = ""
    """The run that has trained and deployed this very data meanwhile; asked only where data triggered the run."""


@dataclass(frozen=True, kw_only=True)
class Snapshotted:
    """`snapshot`. Files: manifest.parquet (interval manifest's columns, split, group_id, excluded_reason)."""

    snapshot_id: str
    dataset: str
    class_names: tuple[str, ...]
    """Sorted; the position is the label."""
    num_images: int
    split_counts: dict[str, int]
    """Images in train, val, test, excluded."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """`training_set`. Files: training_set.parquet (image_id, label, split, weight and the feature columns)."""

    snapshot_id: str
    num_images: int
    num_filtered: int
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`prepare`. Files: a pixel set (core.pixelset), its training images stored as core.layout says."""

    num_train: int
    num_val: int
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`train`. Files: weights.pt (state dict), history.json."""

    tracking_run_id: str
    epochs_run: int
    best_epoch: int
    """Whose weights are kept."""
    val_accuracy: float
    tta_accuracy: float
    """On the validation split too, with evaluation.tta."""
    device: str
    precision: str
    """fp32, bf16 or fp16."""
    strategy: str
    """How images were loaded: resident, mapped or stream; empty where none were."""
    micro_batch: int
    """Images passed forth and back at once; 0 where a head alone was trained."""
    num_failures: int = 0
    """Images that did not decode; others took their place."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`export`. Files: package/ (a model package without test metrics), variants.json (accuracy, parity).

    Latency varies between equal runs, so it is a fact of the run.
    """

    variant: str
    """The variant that serves: fp32, int8 or fp16."""
    variants: tuple[str, ...]
    """Those that passed."""
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """`evaluate`. Files: package/ (the final model package), metrics.json, confusion.png, mistakes.png."""

    package_digest: str
    accuracy: Interval
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """`evaluate` of an import without labelled images. Files: package/ (the final model package, without metrics)."""

    package_digest: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`compare` (effect). Candidate and champion scored now on common test rows."""

    verdict: str
    """better, not_worse, worse, too_few, same (the candidate is the champion), rolled_back (it was, and a rollback
    took it away) or unmeasured (an import without labelled images)."""
    accepted: bool
    reason: str
    champion_version: int | None
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Registered:
    """`register` (effect). The model version exists, with tags and alias."""

    model: str
    version: int
    package_digest: str
    tracking_run_id: str


@dataclass(frozen=True, kw_only=True)
class Gated:
    """`gate`. Exists only where the verdict was accepted; otherwise the step ends with GateRejected."""

    verdict: str


@dataclass(frozen=True, kw_only=True)
class Built:
    """`build_bento`. Files: bento/ (a self-contained bento folder)."""

    model: str
    version: int
    package_digest: str


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """`deploy` (effect). The version serves behind the gateway."""

    deployment_id: int
    model: str
    version: int
    package_digest: str
    url: str
