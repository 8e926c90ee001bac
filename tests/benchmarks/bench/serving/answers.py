"""Whether everybody says the same of every image, before anybody is timed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bench.serving.load import Load, send
from bench.serving.servers import Server

TOLERANCE = 1e-4
"""Of a probability: sums in another order, as a batch of another size makes them."""

MIN_SPREAD = 0.01
"""Of some class's probability over the images, a hundred times what answers may differ by."""

Probabilities = Sequence[Sequence[float]]


def compare(servers: Iterable[Server], load: Load, expected: Probabilities) -> float:
    """The largest difference of a probability from the bare control's.

    Raises RuntimeError where a server is further off than TOLERANCE, or where no server could be: nothing may be timed.
    """
    _check_that_they_differ(expected)
    once = replace(load, order=range(len(load.files)), seconds=0.0, arrivals=None, keep_answers=True)
    return max(_difference(server, once, expected) for server in servers)


def _difference(server: Server, once: Load, expected: Probabilities) -> float:
    answers = send(server, once).answers
    if len(answers) != len(expected):
        raise RuntimeError(f"{server.name} answered {len(answers)} of {len(expected)} images: nothing is timed")
    found = {place: difference(json.loads(text), expected[place]) for place, text in answers.items()}
    worst = max(found, key=lambda place: found[place])
    if found[worst] > TOLERANCE:
        raise RuntimeError(
            f"{server.name} is {found[worst]:.3g} from the bare probabilities of {once.files[worst]} "
            f"({TOLERANCE:g} is allowed): nothing is timed"
        )
    return found[worst]


def _check_that_they_differ(expected: Probabilities) -> None:
    """Raises RuntimeError where all images have the same answer: any other server's would be right too."""
    spread = max(max(column) - min(column) for column in zip(*expected, strict=True))
    if spread < MIN_SPREAD:
        raise RuntimeError(
            f"the model's probabilities differ by no more than {spread:.3g} over {len(expected)} images: comparing "
            "answers would show nothing, so nothing is timed"
        )


def difference(answer: Any, expected: Sequence[float]) -> float:
    """Of the given probabilities from those of their labels, and from the best that there are, whichever is larger."""
    given = probabilities(answer)
    best = sorted(expected, reverse=True)[: len(given)]
    own = [abs(value - expected[label]) for label, value in given.items()]
    ranked = [abs(one - other) for one, other in zip(sorted(given.values(), reverse=True), best, strict=True)]
    return max(*own, *ranked)


def probabilities(answer: Any) -> dict[int, float]:
    """By label: the best few as we answer, all of them by the Open Inference Protocol, either in a list of one."""
    if isinstance(answer, list):
        return probabilities(answer[0])
    if "outputs" in answer:
        return {label: float(value) for label, value in enumerate(answer["outputs"][0]["data"])}
    return {int(one["label"]): float(one["probability"]) for one in answer["predictions"]}
