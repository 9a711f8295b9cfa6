"""The stores: their ports, and one folder per implementation."""
