"""The bare control: decoding and onnxruntime in one process, with as many threads as the servers, and no network.

    python -m bench.serving.bare PACKAGE VARIANT MODEL_THREADS BATCHES_AT_ONCE

Reads jobs as lines of JSON, answers with lines of JSON: `files` once, then as often as asked `seconds`, or `answers`.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.core import model_package
from pipelines.core.inference import Runtime
from pipelines.core.preprocessing import preprocess


class Bare:
    """The package's serving variant, one image at a time on each thread."""

    def __init__(self, folder: Path, variant: str, model_threads: int, threads: int) -> None:
        package = model_package.load(folder)
        model = package.read(package.variants[variant].file)
        self._spec = package.preprocessing
        self._runtime = Runtime(model, model_threads, provider="cpu")
        self._num_threads = threads
        self._images: list[bytes] = []

    def read(self, files: Sequence[str]) -> None:
        self._images = [Path(file).read_bytes() for file in files]

    def probabilities(self) -> list[list[float]]:
        """Of every image and class."""
        return [self._run(image) for image in self._images]

    def work(self, seconds: float) -> tuple[int, float]:
        """Images done, none begun later than that, and the time it took."""
        began = time.perf_counter()
        end, places = began + seconds, itertools.count()
        counts = [0] * self._num_threads

        def run(thread: int) -> None:
            while time.perf_counter() < end:
                self._runtime.run_batch(preprocess(self._images[next(places) % len(self._images)], self._spec)[None])
                counts[thread] += 1

        threads = [threading.Thread(target=run, args=(number,)) for number in range(self._num_threads)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return sum(counts), time.perf_counter() - began

    def _run(self, image: bytes) -> list[float]:
        found: list[float] = self._runtime.run_batch(preprocess(image, self._spec)[None]).probabilities[0].tolist()
        return found


def main(folder: str, variant: str, model_threads: str, threads: str) -> None:
    bare = Bare(Path(folder), variant, int(model_threads), int(threads))
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if "files" in job:
            bare.read(job["files"])
        elif "answers" in job:
            answer = {"probabilities": bare.probabilities()}
        else:
            requests, wall_s = bare.work(job["seconds"])
            answer = {"requests": requests, "wall_s": wall_s}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
