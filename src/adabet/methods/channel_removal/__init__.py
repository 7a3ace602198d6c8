"""Channels that a network can do without, and how to take them out of it."""

from adabet.methods.channel_removal.edges import Edges, find_edges
from adabet.methods.channel_removal.removal import ChannelRemoval

__all__ = ["ChannelRemoval", "Edges", "find_edges"]
