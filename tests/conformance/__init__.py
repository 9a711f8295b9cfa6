"""The same requests to the real Conductor server and to ours; the answers must be equal."""
