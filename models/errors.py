"""Errors of models that a user can do something about."""

from __future__ import annotations


class ModelError(Exception):
    """A model is missing or its folder is damaged; the message says which and what to do."""
