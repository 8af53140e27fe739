"""Which sky tiles exist, which have arrived, and which need work.

Imports readers, tiles and whatever lies below them. Start with `discovery` (one walk of the roots), then `planning`
(found against committed) and `readiness` (still arriving).
"""
