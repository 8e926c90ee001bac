"""Where and in which format a training computes."""

from __future__ import annotations

import pytest
import torch

from pipelines.core.errors import UserError
from pipelines.core.recipe import Training
from pipelines.training import devices
from pipelines.training.devices import Compute

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")]
)
def test_auto_is_bf16_on_cpus_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert devices.prepare(Training(device="cpu", threads=1)).precision == expected
    assert devices.prepare(Training(device="cpu", threads=1, precision="fp16")).precision == "fp16"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_is_fp16_on_gpus_without_bf16(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert devices._precision("auto", GPU) == expected


def test_a_gpu_is_one_processs_own_and_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto", 1) == CPU
    with pytest.raises(UserError, match=r"training\.device"):
        devices.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="one process a GPU"):
        devices.choose_device("auto", 2)


def test_compiling_is_for_gpus_with_the_tools_or_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "cc" else None)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
    assert devices.should_compile("auto", GPU)
    assert not devices.should_compile("auto", CPU)
    assert devices.should_compile("on", CPU)
    assert not devices.should_compile("off", GPU)
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert not devices.should_compile("auto", GPU)


def test_only_matrix_work_is_in_the_fast_format() -> None:
    one = torch.ones(4, 4)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        compute = Compute(device=CPU, precision=precision)
        with compute.autocast():
            assert (one @ one).dtype == expected
            assert (one + one).dtype == torch.float32
        assert compute.scaler().is_enabled() == (precision == "fp16")
