"""Decode, resize and crop: one backend a module."""
