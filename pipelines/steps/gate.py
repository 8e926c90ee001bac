"""Stop the chain where the verdict is not good enough to deploy."""

from __future__ import annotations

from pipelines.core.errors import GateRejected
from pipelines.core.values import Compared, Gated, Registered


def gate(compared: Compared, registered: Registered) -> Gated:
    """Raises GateRejected with the figures; the version stays registered."""
    if not compared.accepted:
        words = {
            "worse": "worse than what serves",
            "too_few": "too few images to tell",
            "unmeasured": "not measured",
            "rolled_back": "it served before and was rolled back from",
        }
        raise GateRejected(
            f"{registered.model} version {registered.version} is registered but not deployed: "
            f"{words.get(compared.verdict, compared.verdict)}. {compared.reason}. "
            f"`darkroom promote {registered.version} --model {registered.model}` deploys it all the same"
        )
    return Gated(verdict=compared.verdict)
