"""Comparisons: data loaders, ways of running the network, backends."""
