"""Pinned memory is as large as asked for, and pinned for as long as it is used; with a stand-in for the driver."""

import gc

import pytest
import torch

from weight_averaging.placement import free_host_bytes
from weight_averaging.torch.memory import pinned as module
from weight_averaging.torch.memory.pinned import SMALL, pinned


class Driver:
    def __init__(self, error=0):
        self.error, self.known = error, {}

    def cudaHostRegister(self, address, nbytes, flags):
        if not self.error:
            self.known[address] = nbytes
        return self.error

    def cudaHostUnregister(self, address):
        del self.known[address]


@pytest.fixture
def driver(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return driver


def test_pages_are_registered_until_the_last_view_is_gone(driver):
    numel = SMALL // 4 + 1001
    vector = pinned(numel)
    assert driver.known == {vector.data_ptr(): 4 * numel}
    view = vector.fill_(3.0)[5:9]
    del vector
    gc.collect()
    assert view.tolist() == [3.0] * 4
    assert driver.known
    del view
    gc.collect()
    assert not driver.known


@pytest.mark.parametrize("case", ["small", "refused"])
def test_torch_allocates_what_is_small_or_refused(case, driver, monkeypatch):
    driver.error = 1
    asked = []
    monkeypatch.setattr(module.torch, "empty", lambda numel, **options: asked.append((numel, options)))
    numel = 8 if case == "small" else SMALL
    pinned(numel)
    assert asked == [(numel, {"dtype": torch.float32, "pin_memory": True})]


@pytest.mark.gpu
def test_pinned_memory_is_what_was_asked_for():
    torch.zeros(1, device="cuda")
    before = free_host_bytes()
    vector = pinned(300_000_000)  # 1.2 GB, which would be rounded up to 2.1
    taken = before - free_host_bytes()
    assert vector.is_pinned()
    assert taken < 1.35e9
    there = torch.randn(1000, device="cuda")
    vector[:1000].copy_(there, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(vector[:1000], there.cpu())
