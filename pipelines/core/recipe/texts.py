"""Keys whose texts have a form of their own: embeddings, filters, time zones, crons and days."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

from pipelines.core import embedding_name
from pipelines.core.errors import RecipeError
from pipelines.core.features import check_feature, conditions
from pipelines.core.recipe import cron
from pipelines.core.recipe.sections import Features, Schedule, Source


def check(source: Source, features: Features, schedule: Schedule) -> None:
    """Raises RecipeError naming the key, its text and what is allowed, long before a step would stumble over it."""
    embedding_name.parse(features.embedding)
    conditions(features.where)
    if features.weight_by:
        check_feature("features.weight_by", features.weight_by)
    _check_timezone(source.timezone)
    cron.check("schedule.ingest_cron", schedule.ingest_cron)
    cron.check("schedule.train_cron", schedule.train_cron)
    _check_day(schedule.start_date)


def _check_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # names are looked up as files: 'Europe' is a folder
        raise RecipeError(
            f"source.timezone = {name!r}: no such time zone; expected a name such as 'UTC' or 'Europe/Berlin'"
        ) from error


def _check_day(text: str) -> None:
    try:
        if date.fromisoformat(text).isoformat() == text:
            return
    except ValueError:
        pass
    raise RecipeError(f"schedule.start_date = {text!r}: expected a day as YYYY-MM-DD, such as '2024-01-31'")
