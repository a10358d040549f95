"""What of a network is fine-tuned, by name: the values of ``tune``. Plain data, so that ``--help`` needs no torch."""

from __future__ import annotations

TUNES = ("classifier", "classifier+bn", "last-block", "all")
FROM = "from:"  # and the name of a module
