"""The plain control: what a script of thirty lines does. FastAPI, uvicorn, decoding and onnxruntime on a thread.

python -m bench.serving.plain PACKAGE VARIANT MODEL_THREADS BATCHES_AT_ONCE PORT
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from bench.serving.model import Model


def application(model: Model, threads: int) -> FastAPI:
    app, pool = FastAPI(), ThreadPoolExecutor(threads)

    @app.post("/v1/classify")
    async def classify(request: Request) -> dict[str, Any]:
        image = await request.body()
        return await asyncio.get_running_loop().run_in_executor(pool, model.classify, image)

    @app.get("/readyz")
    async def ready() -> dict[str, Any]:
        return {}

    return app


def main(folder: str, variant: str, model_threads: str, threads: str, port: str) -> None:
    app = application(Model(Path(folder), variant, int(model_threads)), int(threads))
    # `Request` is looked up by its name when the path is added, so this module may not be imported lazily.
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
