"""A page of HTML that needs nothing beside it."""

import jinja2


COLOURS = ("#4477aa", "#ee8866", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#bbbbbb")
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
STYLE</style>
<h1>{{ title }}</h1>
BODY</html>
"""


def page_template(style: str, body: str) -> jinja2.Template:
    """
    Args:
        style (`str`): further rules of CSS.
        body (`str`): jinja, whose values are escaped. The page's heading is the variable `title`.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE.replace("STYLE", style).replace("BODY", body))


__all__ = ["COLOURS", "page_template"]
