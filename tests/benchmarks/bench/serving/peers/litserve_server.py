"""LitServe as its guide has it: base64 in JSON, and the same with batches and its fast queue.

python -m bench.serving.peers.litserve_server PORT default|fast
"""

import base64
import sys
from typing import Any

import litserve
import numpy as np

from bench.serving.model import Model
from bench.serving.peers import given
from pipelines.core.pixelset import Pixels


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    model: Model

    def setup(self, device: str) -> None:
        self.model = given.model()

    # Without annotations, as in the guide: LitServe makes the types of its FastAPI path from them.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return self.model.pixels(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Pixels]) -> Pixels:
        return np.stack(inputs)

    def predict(self, pixels: Pixels) -> Any:
        """An answer to [H, W, 3], or answers to [N, H, W, 3]."""
        return self.model.answer(pixels) if pixels.ndim == 3 else self.model.answers(pixels)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return output


def main(port: str, mode: str) -> None:
    fast = mode == "fast"
    batches = {"max_batch_size": given.MAX_BATCH, "batch_timeout": given.BATCH_WAIT_S} if fast else {}
    server = litserve.LitServer(
        Classifier(**batches), accelerator="cpu", workers_per_device=given.CONCURRENCY, fast_queue=fast
    )
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
