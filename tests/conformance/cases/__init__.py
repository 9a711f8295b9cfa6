"""One module per group of rules; every function marked with @rule in here is a case."""
