"""How complex a cloud of activations is: streamed distances, exact Betti numbers, the probe."""

from adabet.topology.betti import betti_one
from adabet.topology.distances import channel_squared_distances, squared_distances
from adabet.topology.probe import Probe, Prober
from adabet.topology.sketch import Sketcher

__all__ = ["Probe", "Prober", "Sketcher", "betti_one", "channel_squared_distances", "squared_distances"]
