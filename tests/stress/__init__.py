"""Stress tests: damaged files, killed runs, memory, large data sets."""
