"""The small demo set and checkpoint of the bench tests."""

from tests.bench.conftest import *  # noqa: F403
