"""Skeleton of the HTML reports: one file without external resources, all values escaped."""

from __future__ import annotations

import base64
from typing import Any

_SKELETON = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; max-width: 100%; }
td, th { padding: .3rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
         overflow-wrap: anywhere; }
td:first-child, th:first-child { text-align: left; }
svg { width: 100%; height: 200px; background: #fafafa; }
img { max-width: 100%; }
figure { margin: 1rem 0; }
.note { color: #a30; }
.box { border: 3px solid; padding: 0 .3rem; margin-right: .5rem; }
</style></head><body>
<h1>{{ title }}</h1>
{% block content %}{% endblock %}
</body></html>
"""


def render_page(content: str, title: str, **values: Any) -> str:
    """Render a report from the Jinja2 template of its content; `values` are escaped as text.

    Jinja2 is no requirement on board: ImportError without it.
    """
    from jinja2 import DictLoader, Environment

    page = f'{{% extends "skeleton" %}}{{% block content %}}{content}{{% endblock %}}'
    loader = DictLoader({"skeleton": _SKELETON, "page": page})
    template = Environment(autoescape=True, loader=loader).get_template("page")
    return template.render(title=title, **values)


def data_url(content: bytes, kind: str) -> str:
    """Return an image file's bytes as a URL for ``src``; ``kind``: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
