"""Every section of the serving benchmark once, at a size that proves that it runs; and what it concludes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_serving
import numpy as np
import pytest
from bench import photographs, process_tree
from bench.memory import Sample
from bench.photographs import Photographs
from bench.serving import answers, client, workload
from bench.serving.latency import longest_silence_ms
from bench.serving.load import Load, Measurement, send
from bench.serving.memory import growth_bytes
from bench.serving.peers.environments import check
from bench.serving.servers import Server

from pipelines.core.errors import PlatformError, SourceError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """60 JPEGs of four tints."""
    return photographs.generate(tmp_path_factory.mktemp("images"), count=60, width=72, height=60)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages are made once for all sections, as on any machine."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(images: Photographs, work: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def sections(*arguments: str) -> dict[str, Any]:
        common = ("--tiny", "--data", str(images.folder), "--work", str(work), "--json")
        assert bench_serving.main([*arguments, *common]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["sections"]
        return found

    return sections


def test_cost_stands_beside_bare_plain_and_envoy(run: Any) -> None:
    found = run("--section", "cost")["cost"]
    assert set(found["servers"]) == {"plain", "ours", "envoy"}
    assert set(found["servers"]["envoy"]["cpu_ms_by_part"]) == {"worker", "envoy"}
    assert len(found["bare_cpu_ms"]["each"]) == found["rounds"] == 2
    assert found["max_difference"] <= answers.TOLERANCE


def test_overhead_has_a_variant_of_ones_own(run: Any) -> None:
    found = run("--section", "overhead", "--variant", "two:DARKROOM_TOP_K=2,DARKROOM_CACHE_BYTES=0")["overhead"]
    assert found["variants"]["two"] == {"DARKROOM_TOP_K": "2", "DARKROOM_CACHE_BYTES": "0"}
    assert set(found["servers"]) == set(found["variants"]) == {"as it is", "every image new to the cache", "two"}


def test_a_trace_is_answered_from_memory_as_far_as_it_repeats(run: Any) -> None:
    found = run("--section", "cache")["cache"]
    # Images under way at the same time are all computed, so a short trace hits less often than it repeats.
    assert found["repeats"] - 0.2 <= found["hit_ratio"]["value"] <= found["repeats"]
    assert found["hit_cpu_ms"]["value"] < found["trace_cpu_ms"]["value"]


def test_latency_memory_and_cold_starts(run: Any) -> None:
    found = run("--section", "latency", "--section", "memory", "--section", "cold-start")
    assert set(found["latency"]["loads"]) == {
        *("50%, even", "50%, Poisson", "80%, even", "80%, Poisson"),
        *("150%, Poisson", "300%, Poisson"),
    }
    leaking = found["memory"]["leaking on purpose"]["growth_from_the_middle_bytes"]
    assert leaking > 20_000_000 > found["memory"]["ours"]["growth_from_the_middle_bytes"]
    assert {"small fp32", "small int8", "large fp32", "large int8"} < found["cold-start"].keys()


def test_peers_are_measured_only_where_they_are_asked_for() -> None:
    assert "peers" not in bench_serving.parse([]).section
    assert bench_serving.parse(["--peers"]).section == [*bench_serving.BY_DEFAULT, "peers"]
    assert bench_serving.parse(["--peers", "--section", "cost"]).section == ["cost", "peers"]


def test_too_few_photographs_are_refused(images: Photographs) -> None:
    with pytest.raises(SourceError, match="60 different JPEGs, 200"):
        workload.distinct(images, 256)
    assert len(set(workload.distinct(images, 12, least=1))) == 12


def test_a_zipf_trace_repeats_as_often_as_asked() -> None:
    trace = workload.zipf(3000, 9000, 0.8)
    assert trace.repeats == pytest.approx(0.8, abs=0.02)
    counts = np.sort(np.bincount(trace.order))[::-1]
    assert counts[0] / counts[9] == pytest.approx(10**trace.exponent, rel=0.4)
    with pytest.raises(SourceError, match="too few"):
        workload.zipf(100, 9000, 0.8)


def test_arrivals_keep_their_rate() -> None:
    for arrivals in (workload.evenly(50, 100), workload.poisson(50, 100)):
        assert len(arrivals) == 5000
        assert arrivals == sorted(arrivals)
        assert arrivals[-1] == pytest.approx(100, rel=0.05)


def test_wrong_answers_are_seen() -> None:
    expected = [0.1, 0.6, 0.3]
    right = [{"label": 1, "probability": 0.6}, {"label": 2, "probability": 0.3}]
    swapped = [{"label": 2, "probability": 0.6}, {"label": 1, "probability": 0.3}]
    not_the_best = [{"label": 0, "probability": 0.1}, {"label": 2, "probability": 0.3}]
    assert answers.difference({"predictions": right}, expected) == 0
    assert answers.difference([{"predictions": right}], expected) == 0
    assert answers.difference({"outputs": [{"data": expected}]}, expected) == 0
    for wrong in (swapped, not_the_best):
        assert answers.difference({"predictions": wrong}, expected) > answers.TOLERANCE


def test_a_model_that_answers_always_the_same_proves_no_server_right() -> None:
    with pytest.raises(RuntimeError, match="comparing answers would show nothing"):
        answers.compare([], Load(files=[], order=[], connections=1), [[0.3, 0.7], [0.3, 0.7]])


def test_a_header_goes_out_with_every_request_and_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer mine\n")
    options = bench_serving.parse(["--header", f"Authorization:@{tmp_path / 'token'}", "--header", "X-Request-ID: a:b"])
    assert options.header == {"Authorization": "Bearer mine", "X-Request-ID": "a:b"}
    job = {"port": 1, "path": "/v1/classify", "encoding": "raw", "headers": options.header}
    head, _, body = client.request(job, b"image").partition(b"\r\n\r\n")
    assert {b"Authorization: Bearer mine", b"X-Request-ID: a:b", b"Content-Length: 5"} <= set(head.split(b"\r\n"))
    assert body == b"image"


def test_a_server_that_refuses_gives_no_figure(images: Photographs, tmp_path: Path) -> None:
    """An HTTP server of the standard library, which knows no POST."""
    argv = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split("port ")[1].split()[0])
            server = Server(name="refusing", port=port, pids={"it": process.pid}, log=tmp_path / "log")
            with pytest.raises(PlatformError, match=r"refusing: status 501"):
                send(server, Load(files=workload.distinct(images, 2, least=1), order=[0, 1], connections=1))
        finally:
            process.terminate()


def test_silence_counts_only_while_somebody_waits() -> None:
    times = [(0.0, 0.1), (5.0, 5.3), (5.1, 5.9)]
    found = Measurement(requests=3, wall_s=6, server_cpu_s={"it": 1.0}, times=times)
    assert longest_silence_ms(found) == pytest.approx(600)
    assert found.cpu_ms() == pytest.approx(1000 / 3)


def test_growth_is_that_of_the_second_half() -> None:
    warming = [min(place, 50) for place in range(100)]
    leaking = list(range(100))
    by_name = {
        name: growth_bytes([Sample(step=step, pss_bytes=number, rss_bytes=0) for step, number in enumerate(numbers)])
        for name, numbers in (("warming", warming), ("leaking", leaking))
    }
    assert by_name == {"warming": 0, "leaking": 40}
    with pytest.raises(RuntimeError, match="too few"):
        growth_bytes([Sample(step=0, pss_bytes=1, rss_bytes=1)])


def test_cpu_of_a_tree_holds_its_children() -> None:
    burn = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process_tree.cpu_s(process.pid) >= 0.2
    assert process_tree.cpu_s(process.pid) == 0


@pytest.mark.parametrize("peer", ["bentoml", "litserve", "mlserver"])
def test_peers_run_the_model_in_our_versions(peer: str) -> None:
    check(peer)
