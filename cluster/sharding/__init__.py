"""Shards of workflows: who owns them, how they are written, and how they change hands."""
