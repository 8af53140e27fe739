"""Prefect flows and the command line: scheduling, progress, retries, errors as messages. Thin.

Imports everything below; nothing imports flows. Start with `survey`, one flow from roots to release, or `cli.main`.
"""
