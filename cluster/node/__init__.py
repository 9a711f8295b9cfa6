"""One node: what it serves over HTTP, and how requests find their shard."""
