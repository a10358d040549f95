"""Files become crops. Imports none of the other packages."""

from pipelines.backends import BACKENDS, backend, choose, unusable

__all__ = ["BACKENDS", "backend", "choose", "unusable"]
