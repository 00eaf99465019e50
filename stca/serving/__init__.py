"""Serving: the encoded histories of many users, kept between requests, appended to, and attended to where they lie."""

from stca.serving.cache import HistoryCache
from stca.serving.pool import MissingUsersError
from stca.serving.selection import Selection, Statistics

__all__ = ["HistoryCache", "MissingUsersError", "Selection", "Statistics"]
