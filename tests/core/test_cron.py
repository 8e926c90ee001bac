"""Cron expressions of recipes: never one that Airflow would stumble over."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from croniter import croniter

from pipelines.core.errors import RecipeError
from pipelines.core.recipe import cron

KEY = "schedule.train_cron"


@pytest.mark.parametrize(
    "text",
    [
        "0 3 * * 0", "*/15 8-18 * * mon-fri", "0 0 1,15 * *", "0 0 29 2 *", "0 22-2 * * *", "0 0 * JAN-mar/2 *",
        "0 0 30 2 1", "5/15 * * * *", "0 0 * * sat-sun", "00 01 * * 7", *cron.PRESETS,
    ],
)  # fmt: skip
def test_what_people_write_passes(text: str) -> None:
    cron.check(KEY, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0 fields"),
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * 0", "6 fields"),
        ("@sometimes", "1 fields"),
        ("60 * * * *", "'60' as minute, which goes from 0 to 59"),
        ("0 0 0 * *", "'0' as day of the month, which goes from 1 to 31"),
        ("0 0 * 13 *", "'13' as month"),
        ("0 0 * mon *", "'mon' as month"),
        ("0 0 * * 8", "'8' as weekday"),
        ("*/0 * * * *", "a step of 0 as minute"),
        ("1,,2 * * * *", "'' as minute"),
        ("-5 * * * *", "'-5' as minute"),
        ("٣ 0 * * *", "as minute"),
        ("0 0 30 2 *", "a day that none of its months has"),
        ("0 0 31 4,6 0-6", "a day that none of its months has"),
        ("0 0 31 nov-feb/3 *", "a day that none of its months has"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.train_cron = .*expected five fields.*'0 3 \* \* 0'") as caught:
        cron.check(KEY, text)
    assert says in str(caught.value)


def test_whatever_passes_has_a_next_time_in_airflows_parser() -> None:
    chance = random.Random(0)
    atoms = [
        "*",
        "0",
        "1",
        "2",
        "5",
        "7",
        "12",
        "23",
        "29",
        "30",
        "31",
        "59",
        "60",
        "jan",
        "feb",
        "sun",
        "fri",
        "L",
        "?",
        "",
    ]

    def field() -> str:
        items = []
        for _ in range(chance.choice((1, 1, 1, 2))):
            text = chance.choice(atoms)
            text += f"-{chance.choice(atoms)}" if chance.random() < 0.2 else ""
            items.append(text + (f"/{chance.choice(atoms)}" if chance.random() < 0.2 else ""))
        return ",".join(items)

    passed = 0
    for _ in range(30_000):
        text = " ".join(chance.choice((field(), field(), "*")) for _ in range(5))
        try:
            cron.check(KEY, text)
        except RecipeError:
            continue
        passed += 1
        croniter(text, datetime(2024, 1, 1, tzinfo=UTC)).get_next(datetime)
    assert passed > 300
