"""Latency and throughput of the loop, beside the loops that it replaces."""
