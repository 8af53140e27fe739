"""All settings, in sections, from one TOML file and `--set`; and the workspace, which knows where everything is.

Imports core and the settings that models own. Start with `settings`; `workspace` resolves folders; `renamed` accepts
old names.
"""
