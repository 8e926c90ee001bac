"""What every serving process gets to know of the platform, and no secret of it."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.local.process import PLATFORM_MARK, environment
from pipelines.settings import Settings

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_PASSED_ON_OURS = (PLATFORM_MARK, "SPT_NOENV", "PYTHONUNBUFFERED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def serving_environment(settings: Settings, *, cluster: str, sources: Path) -> dict[str, str]:
    """Of a process of a cluster, whose code is in the folder `sources`."""
    ours = environment(settings)
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        **{name: ours[name] for name in _PASSED_ON_OURS},
        "PYTHONPATH": str(sources),
        "PYTHONDONTWRITEBYTECODE": "",
        "BENTOML_HOME": str(settings.home / "cache" / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DARKROOM_CLUSTER": cluster,
        **dict(settings.service_variables),
        **(settings.tracing.environment if settings.tracing else {}),
    }
