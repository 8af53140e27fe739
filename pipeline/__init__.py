"""From sky tiles to rows of the catalogue, and from labels to models: what flows call and the libraries do not know.

Imports models and catalogs, never flows. Districts import downward only (docs/architecture.md); plain functions, no
Prefect. Start with `survey` (new tiles become rows) or `training` (labelled images become a model).
"""
