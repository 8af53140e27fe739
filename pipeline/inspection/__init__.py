"""Questions of a person to a workspace: its state, why an object has its label, and whether that can be reproduced.

The topmost district of the pipeline: it imports any other, and none imports it; it writes nothing but a cache.
Start with `status` for the workspace and `explain` for one object; `explain_report` makes text and a page of that.
"""
