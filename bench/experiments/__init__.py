"""Experiments of the FixRes papers."""
