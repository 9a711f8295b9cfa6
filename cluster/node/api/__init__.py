"""The REST API: one module per Conductor resource, each a set of tiny handlers."""
