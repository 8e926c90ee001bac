"""Triton's own clients against a server, in a process of their own: their messages have our messages' names.

    python tests/support/oip_client.py HTTP_ADDRESS GRPC_ADDRESS MODEL VERSION IMAGE...

Prints one JSON object: what every client got for the same images.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AUTHORIZATION = "OIP_CLIENT_AUTHORIZATION"
"""Variable with the header's value."""
OUTPUTS = ("probabilities", "logits", "embedding", "label", "class_name")


def ask_with_triton(
    images: Sequence[bytes],
    *,
    http_port: int,
    grpc_port: int,
    model: str,
    version: str,
    folder: Path,
    authorization: str = "",
) -> dict[str, Any]:
    """What every client gets for the images, by its name. The images lie in the folder meanwhile."""
    paths = [folder / f"{number}.image" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    addresses = (f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    done = subprocess.run(
        [sys.executable, __file__, *addresses, model, version, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, AUTHORIZATION: authorization},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def main(arguments: Sequence[str]) -> None:
    import numpy as np
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    http, grpc, model, version, *paths = arguments
    images = np.array([Path(path).read_bytes() for path in paths], dtype=np.object_)
    found: dict[str, Any] = {}
    with triton_http.InferenceServerClient(http) as client:
        _authorize(triton_http, client)
        found["http"] = _ask(triton_http, client, model, version, images)
        found["http json"] = _answer(
            client.infer(model, _inputs(triton_http, images), outputs=_outputs(triton_http, binary_data=False))
        )
        found["http gzip"] = _answer(
            client.infer(
                model,
                _inputs(triton_http, images),
                outputs=_outputs(triton_http),
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            )
        )
    with triton_grpc.InferenceServerClient(grpc) as client:
        _authorize(triton_grpc, client)
        found["grpc"] = _ask(triton_grpc, client, model, version, images)
    found["http aio"] = asyncio.run(_ask_http_aio(http, model, images))
    found["grpc aio"] = asyncio.run(_ask_grpc_aio(grpc, model, images))
    sys.stdout.write(json.dumps(found))


def _ask(library: Any, client: Any, model: str, version: str, images: Any) -> dict[str, Any]:
    import numpy as np

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, version)
    by_json = {} if library.__name__ == "tritonclient.http" else {"as_json": True}
    about = {
        "server": client.get_server_metadata(**by_json),
        "model": client.get_model_metadata(model, version, **by_json),
    }
    answer = client.infer(model, _inputs(library, images), version, outputs=_outputs(library), request_id="mine")
    response = answer.get_response(**by_json)
    assert response["id"] == "mine"
    best = client.infer(
        model, _inputs(library, images), outputs=[library.InferRequestedOutput("probabilities", class_count=2)]
    )
    everything = client.infer(model, _inputs(library, images)).get_response(**by_json)
    refusals = {}
    for name, (asked, inputs) in {
        "unknown model": ("other", _inputs(library, images)),
        "no image": (model, _inputs(library, np.array([b"no image"], dtype=np.object_))),
    }.items():
        try:
            client.infer(asked, inputs)
        except Exception as error:
            refusals[name] = str(error)
    return {
        **_answer(answer),
        **about,
        "parameters": response["parameters"],
        "best": [[text.decode() for text in row] for row in best.as_numpy("probabilities")],
        "all": sorted(one["name"] for one in everything["outputs"]),
        "refusals": refusals,
    }


async def _ask_http_aio(address: str, model: str, images: Any) -> dict[str, Any]:
    import tritonclient.http.aio as triton_http_aio

    async with triton_http_aio.InferenceServerClient(address) as client:
        _authorize(triton_http_aio, client)
        return _answer(await client.infer(model, _inputs(triton_http_aio, images), outputs=_outputs(triton_http_aio)))


async def _ask_grpc_aio(address: str, model: str, images: Any) -> dict[str, Any]:
    import tritonclient.grpc.aio as triton_grpc_aio

    async with triton_grpc_aio.InferenceServerClient(address) as client:
        _authorize(triton_grpc_aio, client)
        return _answer(await client.infer(model, _inputs(triton_grpc_aio, images), outputs=_outputs(triton_grpc_aio)))


def _authorize(library: Any, client: Any) -> None:
    """As Triton's documentation has it for whatever every request needs."""

    class Authorization(library.InferenceServerClientPlugin):  # type: ignore[name-defined,misc]
        def __call__(self, request: Any) -> None:
            request.headers["authorization"] = os.environ[AUTHORIZATION]

    if os.environ[AUTHORIZATION]:
        client.register_plugin(Authorization())


def _inputs(library: Any, images: Any) -> list[Any]:
    tensor = library.InferInput("image", list(images.shape), "BYTES")
    tensor.set_data_from_numpy(images)
    return [tensor]


def _outputs(library: Any, **options: Any) -> list[Any]:
    return [library.InferRequestedOutput(name, **options) for name in OUTPUTS]


def _answer(answer: Any) -> dict[str, Any]:
    found = {name: answer.as_numpy(name).tolist() for name in OUTPUTS}
    found["class_name"] = [value.decode() if isinstance(value, bytes) else value for value in found["class_name"]]
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
