"""Podium: an engine for Conductor workflows."""

__version__ = "0.1.0"
