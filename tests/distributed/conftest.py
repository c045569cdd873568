"""Ranks are forked from a parent that has imported everything."""

import tests.support.preloaded  # noqa: F401
