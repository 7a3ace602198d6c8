import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.lean.against_stock import compare

GATES = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": torch.Tensor.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardtanh bounds": lambda x: F.hardtanh(x, -0.25, 2.0),
    "leaky_relu": F.leaky_relu,
    "leaky_relu slope": lambda x: F.leaky_relu(x, 0.3),
    "leaky_relu flat": lambda x: F.leaky_relu(x, 0.0),
    "hardsigmoid": F.hardsigmoid,
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5),
    "clamp min": lambda x: x.clamp(min=0),
    "clamp max": lambda x: x.clamp(max=1.5),
    "clip": lambda x: x.clip(0.25, 0.75),
    "clamp_min": lambda x: torch.clamp_min(x, 0.25),
    "clamp_max": lambda x: x.clamp_max(0.25),
}
def test_all(): 
    for k,f in GATES.items():
        for x in (torch.randn(3,5,7),torch.randn(2,3,4,5).to(memory_format=torch.channels_last),torch.randn(0,3)):
            x.requires_grad_()
            print(k, tuple(x.shape), compare(f,x))
