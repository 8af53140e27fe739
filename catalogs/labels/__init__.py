"""Labels that people give to objects: versions that are only appended to, checked when they are added.

Imports query, to find the objects meant. Start with `store`; `io` reads files of labels, `checks` says which rows are
refused and why.
"""
