"""The vocabulary that every district shares: errors, object ids, times, versions, redaction, progress.

Imports no other district. Start with `errors`: which failures there are, and who has to act on each.
"""
