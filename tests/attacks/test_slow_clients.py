"""Clients that send a byte now and then, to hold a place for long: ended in time, while others do not notice."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from drips import ATTACKS, DRIP_S, seconds_until_ended, slow_batch, slow_body, slow_chunks, slow_frame, slow_headers
from front_door import Bystander, Door

from bentos.kit.bodies import READ_TIMEOUT_S

ENDED_WITHIN_S = 15.0


@pytest.mark.heavy
def test_whoever_drips_is_ended(door: Door) -> None:
    with Bystander(door.port).asking() as bystander:
        held = seconds_until_ended(door, list(ATTACKS) * 8)
    assert set(held) == {attack.__name__ for attack in ATTACKS}
    assert {name: seconds for name, seconds in held.items() if seconds > ENDED_WITHIN_S} == {}
    assert bystander.failures == []


@pytest.mark.heavy
def test_a_process_ends_them_itself(door: Door) -> None:
    """The same without Envoy before it, a little later."""
    alone = replace(door, settings=replace(door.settings, gateway_port=door.served.port))
    attacks = [slow_headers, slow_body, slow_chunks, slow_batch, slow_frame]
    held = seconds_until_ended(alone, attacks * 4)
    assert {attack.__name__ for attack in attacks} == set(held)
    assert max(held.values()) < READ_TIMEOUT_S + 2 * DRIP_S


@pytest.mark.full
def test_five_hundred_who_drip_take_no_time_of_others(door: Door) -> None:
    """They drip from a process of their own that gets what time others leave: its own work is not the gateway's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (14,)) as elsewhere:
        elsewhere.submit(time.sleep, 0).result()
        with Bystander(door.port).asking() as before:
            time.sleep(ENDED_WITHIN_S)  # what there is to compare with
        with Bystander(door.port).asking() as during:
            held = elsewhere.submit(seconds_until_ended, door, [slow_body] * 500).result()
    assert held["slow_body"] < ENDED_WITHIN_S
    assert during.failures == []
    assert during.p99_s() < 1.2 * before.p99_s() + 0.002
