"""The two passes of a run: accuracy and throughput."""
