"""figures.html: all figures of a call on one page that needs nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from genrecal.figures.runs import Run

if TYPE_CHECKING:
    from genrecal.figures.draw import Drawn, Skipped

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figures of {{ runs | length }} runs</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --faint: #6a6a6a; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #17191c; --faint: #a0a0a0; --line: #3a3d42; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 70rem; padding: 1rem; }
figure { margin: 0 0 3rem; }
figure svg { display: block; width: 100%; height: auto; max-height: 48rem; }
figcaption, li { color: var(--faint); font-size: .9rem; max-width: 56rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; }
code { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Figures of {{ runs | length }} {{ "run" if runs | length == 1 else "runs" }}</h1>
<table>
<tr><th>run</th><th>method</th><th>teacher</th><th>student</th><th>data</th><th>seed</th></tr>
{% for run in runs -%}
<tr><td><code>{{ run.folder }}</code></td><td>{{ run.parts.method }}</td><td>{{ run.parts.teacher }}</td>
<td>{{ run.parts.student }}</td><td>{{ run.parts.data }}</td><td>{{ run.seed }}</td></tr>
{% endfor -%}
</table>
{% for one in drawn %}
<figure id="{{ one.name }}">
<h2>{{ one.title }}</h2>
{{ one.svg }}
<figcaption>{{ one.caption }} <a href="{{ one.name }}.csv">{{ one.name }}.csv</a></figcaption>
</figure>
{% endfor %}
{% if skipped %}
<h2>Not drawn</h2>
<ul>
{% for one in skipped -%}
<li>{{ one.title }}: {{ one.why }}</li>
{% endfor -%}
</ul>
{% endif %}
</body>
</html>
"""


def page(runs: Sequence[Run], drawn: Sequence[Drawn], skipped: Sequence[Skipped]) -> str:
    """The page as HTML; every text of a run is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(runs=runs, drawn=drawn, skipped=skipped)
