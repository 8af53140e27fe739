"""What each command of the command line does, one module per topic; `flows.cli.main` lists them.

Each module has `add(subparsers)`, which declares its commands and stays light: heavy packages are imported by the
functions that need them.
"""
