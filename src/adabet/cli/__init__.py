"""The command line: parse, call, show."""

from adabet.cli.app import app

__all__ = ["app"]
