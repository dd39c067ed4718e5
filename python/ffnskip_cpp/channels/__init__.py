"""A model's weights by input channel, in a file."""

from __future__ import annotations

from .channels import ChannelsFile, write_channels

__all__ = ["ChannelsFile", "write_channels"]
