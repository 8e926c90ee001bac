"""What each part of a run does."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.core.recipe.options import option

OWN_BACKBONES = ("small", "airbench")
BACKBONES = (
    *OWN_BACKBONES,
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
)
TORCHVISION = "torchvision"
"""The value of model.weights that stands for torchvision's published weights."""


@dataclass(frozen=True, kw_only=True)
class Source:
    uri: str = option(
        "",
        "Folder, tar, zip, CSV or Parquet manifest, or s3:// prefix of any of these; a relative path is below "
        "DARKROOM_HOME.",
    )
    dated: bool = option(
        False, "Images come with a day (dt=YYYY-MM-DD folders, event times): one ingest interval a day, scheduled."
    )
    timezone: str = option("UTC", "Zone of event times that carry none.")


@dataclass(frozen=True, kw_only=True)
class Validation:
    min_images_per_class: int = option(2, "Fewer images in any class of the composed set block.", minimum=1)
    min_side_px: int = option(4, "Images with a shorter side block.", minimum=1)
    max_quarantine_share: float = option(0.05, "A larger share of unreadable files blocks.", minimum=0, maximum=1)
    max_class_ratio: float = option(100.0, "Largest class over smallest class; above it warns.", minimum=1)
    max_statistics_shift: float = option(
        3.0,
        "Shift of a mean statistic against the accepted head, in its standard deviations; above it warns.",
        minimum=0,
    )
    max_class_share_shift: float = option(0.5, "Change of a class's share against the head; above it warns.", minimum=0)
    known_labels: tuple[str, ...] = option((), "Class names that may occur; empty takes those of the source.")
    block_cross_split_duplicates: bool = option(
        False, "Exact or near duplicates across the source's own splits block instead of warn."
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    salt: str = option("darkroom", "Changes which images fall into which split.")
    val_share: float = option(0.15, "Share of validation images.", minimum=0.01, maximum=0.5)
    test_share: float = option(0.15, "Share of test images.", minimum=0.01, maximum=0.5)
    near_duplicate_distance: int = option(
        4, "Images within this Hamming distance of the 64-bit perceptual hash are one group.", minimum=0, maximum=12
    )
    max_group_share: float = option(
        0.02,
        "A larger near-duplicate group means that the perceptual hash does not fit this data.",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class Features:
    embedding: str = option(
        "hog-color-v1",
        "Embedding of the images: 'hog-color-v1', 'torchvision:<backbone>:<weights file>' or 'package:<digest>'.",
    )
    where: tuple[str, ...] = option((), "Filters on features, such as 'sharpness > 0.01'; an image must pass all.")
    weight_by: str = option("", "A feature that weights training samples; empty weights all alike.")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    height: int = option(32, "Rows of the model's input, px.", minimum=8, maximum=1024)
    width: int = option(32, "Columns of the model's input, px.", minimum=8, maximum=1024)
    fit: str = option(
        "crop", "'crop' keeps the aspect and crops the centre; 'squash' stretches.", choices=("crop", "squash")
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    backbone: str = option(
        "small",
        "Network: 'small' and 'airbench' (wider) are for images up to 64 px, the others are torchvision's.",
        choices=BACKBONES,
        form=True,
    )
    weights: str = option(
        "", "State-dict file to start from, or 'torchvision' for its published weights; empty starts from scratch."
    )
    embedding_dim: int = option(
        128, "Width of the embedding before the head; 0 takes the backbone's own features.", minimum=0, maximum=4096
    )
    width: float = option(1.0, "Factor on the channels of 'small' and 'airbench'.", minimum=0.25, maximum=4)


@dataclass(frozen=True, kw_only=True)
class Training:
    mode: str = option(
        "scratch",
        "'scratch' and 'finetune' train the whole network, 'finetune' from model.weights with layer-wise rates; 'head' "
        "trains a linear head on the stored embeddings, in seconds. Of this section only weight_decay, "
        "label_smoothing, class_balance, device, deterministic and threads then matter, of preprocessing, model, "
        "augmentation and loading nothing: pixels are those of the embedding.",
        choices=("scratch", "finetune", "head"),
        form=True,
    )
    epochs: int = option(20, "Passes over the training split.", minimum=1, maximum=10_000, form=True)
    batch_size: int = option(
        128, "Images an optimizer step; batch norm needs two.", minimum=2, maximum=65_536, form=True
    )
    micro_batch: int = option(
        0,
        "Images a forward pass, gradients being accumulated over a batch; 0 takes the whole batch at once. Halved "
        "where the GPU's memory does not suffice; with several processes before a step, and never in one.",
        minimum=0,
        maximum=65_536,
    )
    optimizer: str = option(
        "adamw", "'muon' orthogonalizes the updates of matrices.", choices=("adamw", "sgd", "muon"), form=True
    )
    learning_rate: float = option(
        0.0, "Peak learning rate; 0 takes the optimizer's own.", minimum=0, maximum=10_000, form=True
    )
    weight_decay: float = option(
        -1.0,
        "Decay of matrices and filters; -1 takes the optimizer's own, and that of a head what validates best. 'muon' "
        "sets the scale of filters where a batch norm follows every convolution: there only the head decays.",
        minimum=-1,
        maximum=10,
    )
    momentum: float = option(
        -1.0,
        "With Nesterov's step; -1 takes 0.9 for 'sgd', and for 'muon' 0.6 where a batch norm follows every convolution "
        "and else 0.95. 'adamw' has its own.",
        minimum=-1,
        maximum=0.999,
    )
    schedule: str = option(
        "cosine",
        "'cosine' falls to zero; 'trapezoid' stays at the peak and falls linearly over the last cooldown_share.",
        choices=("cosine", "trapezoid"),
    )
    warmup_share: float = option(0.1, "Share of the steps that warm up linearly.", minimum=0, maximum=0.9)
    cooldown_share: float = option(0.4, "Share of the steps over which a trapezoid falls.", minimum=0, maximum=1)
    layer_decay: float = option(
        0.75, "Fine-tuning: factor on the rate of each block below the head.", minimum=0.1, maximum=1
    )
    clip_norm: float = option(0.0, "Largest norm of a step's gradient; 0 does not clip.", minimum=0)
    ema_decay: float = option(
        0.0,
        "Decay a step of the averaged weights, which are then what is judged and kept; 0 averages none.",
        minimum=0,
        maximum=0.99999,
    )
    label_smoothing: float = option(0.05, "Label smoothing.", minimum=0, maximum=0.5)
    class_balance: bool = option(False, "Weight classes by the inverse of their size.")
    patience: int = option(
        8, "Epochs without a better validation loss before training stops; 0 never stops.", minimum=0
    )
    keep: str = option(
        "best", "Weights that are kept: of the best epoch by validation loss, or of the last.", choices=("best", "last")
    )
    precision: str = option(
        "auto",
        "'auto' is bf16 where the device is fast at it, fp16 on a GPU without bf16, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: str = option(
        "auto", "torch.compile; 'auto' compiles on a GPU, where it pays after seconds.", choices=("auto", "on", "off")
    )
    device: str = option("auto", "'auto' is CUDA where there is a GPU.", choices=("auto", "cpu", "cuda"))
    deterministic: bool = option(
        False, "Bit-identical repeats on a GPU too, at some cost in speed; a CPU always repeats."
    )
    threads: int = option(
        2, "CPU threads; part of the result's identity, since sums depend on it.", minimum=1, maximum=256
    )
    seed: int = option(0, "Seed of initialization, order and augmentation.", minimum=0, form=True)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    crop: str = option(
        "shift",
        "'shift' moves the image, repeating its border; 'resized' cuts a random part and scales it (photographs).",
        choices=("shift", "resized"),
    )
    shift_share: float = option(0.1, "Largest random shift as a share of the side.", minimum=0, maximum=0.5)
    border: str = option("edge", "What a shift fills in: the edge repeated, or mirrored.", choices=("edge", "reflect"))
    min_area: float = option(
        0.25,
        "Smallest share that 'resized' cuts of the image; of its largest part of the input's shape where that is long.",
        minimum=0.01,
        maximum=1,
    )
    flip: str = option(
        "random",
        "Mirror left to right: 'none' (digits, text), 'random', or 'alternating': each image every second epoch.",
        choices=("none", "random", "alternating"),
    )
    erasing: float = option(0.0, "Share of images that lose a random rectangle.", minimum=0, maximum=1)
    mixup: float = option(
        0.0, "Alpha of mixup (the images of a batch blended in pairs); 0 mixes none.", minimum=0, maximum=10
    )
    cutmix: float = option(
        0.0,
        "Alpha of cutmix (pairs exchange a rectangle); 0 mixes none. With mixup, each takes half the batches.",
        minimum=0,
        maximum=10,
    )
    start_size: float = option(
        1.0,
        "Side of training images in the first epochs as a share of the full one, which is reached after two thirds of "
        "the training; smaller sides are faster.",
        minimum=0.25,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class Loading:
    strategy: str = option(
        "auto",
        "'resident' holds all pixels on the device, 'mapped' maps decoded pixels from disk, 'stream' decodes while "
        "training. 'auto' takes the first that fits.",
        choices=("auto", "resident", "mapped", "stream"),
    )
    margin: float = option(
        1.5,
        "Side of stored pixels over the training side where a 'resized' crop is cut from them; less makes crops softer "
        "than what is evaluated.",
        minimum=1,
        maximum=4,
    )
    max_decoded_gb: float = option(
        64.0, "'auto' streams a training split whose decoded pixels would take more than this.", minimum=0
    )
    workers: int = option(
        0,
        "Threads that load ahead for 'mapped' and 'stream'; 0 takes one less than this process's share of the host's "
        "cores, at least 1 and at most 16.",
        minimum=0,
        maximum=256,
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    tta: str = option(
        "none",
        "Test-time augmentation, part of the exported graph: 'mirror' averages 2 views, 'mirror_shift' 6, each at the "
        "cost of an inference.",
        choices=("none", "mirror", "mirror_shift"),
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    int8: bool = option(True, "Make and judge an int8 variant.")
    max_logit_difference: float = option(1e-3, "Largest |logit difference| of ONNX against torch in fp32.", minimum=0)
    max_int8_disagreement: float = option(0.01, "Share of answers that int8 may change.", minimum=0, maximum=1)
    max_int8_accuracy_loss: float = option(0.005, "Upper end of int8's accuracy loss.", minimum=0, maximum=1)
    require_int8: bool = option(
        False, "An int8 variant out of its bounds stops the chain instead of being left out; fp32 then serves."
    )
    min_int8_images: int = option(1000, "Validation images needed to judge int8.", minimum=1)
    num_calibration_images: int = option(256, "Training images that calibrate int8.", minimum=8, maximum=10_000)
    latency_budget_ms: float = option(
        0.0, "The most accurate variant within this latency serves; 0 takes the fastest that passed.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class Gate:
    margin: float = option(
        0.01, "Accuracy a candidate may lose and still be 'not worse'.", minimum=0, maximum=0.5, form=True
    )
    min_images: int = option(50, "Fewer common test images are too few to tell.", minimum=1)
    confidence: float = option(0.95, "Confidence of all intervals.", minimum=0.5, maximum=0.999)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    workers: int = option(1, "Serving processes.", minimum=1, maximum=64)
    threads: int = option(1, "Threads of the model in each serving process.", minimum=1, maximum=256)
    ready_timeout_s: float = option(60.0, "Seconds a new deployment has to become ready.", minimum=1)
    drain_timeout_s: float = option(15.0, "Seconds the old deployment has to finish its requests.", minimum=0)
    top_k: int = option(5, "Classes in an answer unless the request asks otherwise.", minimum=1, maximum=1000)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    ingest_cron: str = option("0 0 * * *", "When an ingest interval ends (cron, UTC).")
    train_cron: str = option("0 3 * * 0", "When the classifier is retrained regardless of new data (cron, UTC).")
    start_date: str = option("2024-01-01", "First ingest interval (YYYY-MM-DD).")
    cool_down_s: float = option(
        15.0, "Quiet seconds after the last ingest before training starts.", minimum=0, form=True
    )
