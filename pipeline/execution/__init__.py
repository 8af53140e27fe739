"""Where units of work run: in this process, on workers of a Dask cluster, or as a process group.

Imports runs and config; knows nothing of what units do. Start with `executor.run_tasks`; `clusters` opens workers,
`preflight` checks them, `process_group` runs processes that wait for each other.
"""
