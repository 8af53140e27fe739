"""Errors of the catalogue that a reader can do something about."""

from __future__ import annotations


class CatalogError(Exception):
    """Something is wrong with the catalogue or with the question; the message says what to do."""
