"""Whether everybody says the same of every image, before anybody is timed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bench.serving.load import Load, send
from bench.serving.servers import Server

TOLERANCE = 1e-4
"""Of a probability: sums in another order, as a batch of another size makes them."""

Probabilities = Sequence[Sequence[float]]


def compare(servers: Iterable[Server], load: Load, expected: Probabilities) -> float:
    """The largest difference of a probability from the bare control's.

    Raises RuntimeError where a server is further off than TOLERANCE: nothing may be timed then.
    """
    once = replace(load, order=range(len(load.files)), seconds=0.0, arrivals=None, keep_answers=True)
    return max(_difference(server, once, expected) for server in servers)


def _difference(server: Server, once: Load, expected: Probabilities) -> float:
    answers = send(server, once).answers
    if len(answers) != len(expected):
        raise RuntimeError(f"{server.name} answered {len(answers)} of {len(expected)} images: nothing is timed")
    worst = 0.0
    for place, text in answers.items():
        given = probabilities(json.loads(text))
        best = sorted(expected[place], reverse=True)[: len(given)]
        own = max(abs(value - expected[place][label]) for label, value in given.items())
        # The classes given must be the best ones: equal, up to ties, to the best that bare has.
        ranks = max(
            abs(value - wanted) for value, wanted in zip(sorted(given.values(), reverse=True), best, strict=True)
        )
        if max(own, ranks) > TOLERANCE:
            raise RuntimeError(
                f"{server.name} is {max(own, ranks):.3g} from the bare probabilities of {once.files[place]} "
                f"({TOLERANCE:g} is allowed): nothing is timed"
            )
        worst = max(worst, own, ranks)
    return worst


def probabilities(answer: Mapping[str, object]) -> dict[int, float]:
    """By label, as they are given: the best few by us and by those who answer like us, all of them by Open Inference."""
    if "outputs" in answer:
        outputs = answer["outputs"]
        assert isinstance(outputs, list)
        return {label: float(value) for label, value in enumerate(outputs[0]["data"])}
    predictions = answer["predictions"]
    assert isinstance(predictions, list)
    return {int(one["label"]): float(one["probability"]) for one in predictions}
