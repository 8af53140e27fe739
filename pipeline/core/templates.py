"""Reports in Markdown and HTML, from the Jinja2 templates in the `templates` folder of a district."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(district: str, template: str, **values: Any) -> str:
    """Fill a template; in templates whose name ends with `.html.j2`, values are escaped.

    Parameters
    ----------
    district : the package that owns the template, such as `pipeline.drift`.
    template : its name in the folder `templates` of that package.

    Raises
    ------
    jinja2.UndefinedError : the template names a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader(district),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
