"""What our worker says of itself on /metrics."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from bench.serving.servers import Server


def read(server: Server) -> dict[str, float]:
    """Samples by name, labels in order: `darkroom_cache_lookups_total{level="memory",result="hit"}`."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers=dict(server.headers))
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def mean_batch(server: Server) -> float:
    """Images that went through the model together, on average over the process's life."""
    found = read(server)
    return found["darkroom_batch_images_sum"] / found["darkroom_batch_images_count"]


def cache_lookups(server: Server) -> tuple[float, float]:
    """Hits and misses of its memory so far."""
    found = read(server)
    name = "darkroom_cache_lookups_total"
    hit, miss = (found.get(f'{name}{{level="memory",result="{one}"}}', 0.0) for one in ("hit", "miss"))
    return hit, miss
