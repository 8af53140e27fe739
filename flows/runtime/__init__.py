"""What every flow needs around it: Prefect's environment for a workspace, progress, retries, events.

Imports pipeline. Start with `environment`, which runs before Prefect is imported.
"""
