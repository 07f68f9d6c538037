"""A report in, one page of HTML out, that needs nothing else: no network, no font, no other file.

Texts of a corpus are untrusted, so the templates escape whatever is put into them, and the page's
own policy lets no script run but the one whose digest it names.
"""

import base64
import functools
import hashlib
from importlib import resources

import jinja2
from markupsafe import Markup

from circuitseer_assets.method.explanation import Explanation
from circuitseer_assets.method.report import Report
from circuitseer_assets.method.report_sections import view_explanation, view_report
from circuitseer_assets.method.tables import printable


def render_report(report: Report) -> str:
    """Returns the audit's page; the same report gives the same text."""
    return _render("report.html.j2", report=view_report(report), title=f"Audit {report.audit_id}")


def render_explanation(explanation: Explanation) -> str:
    """Returns a page of one sample: its facts, its shaded tokens, those that stand out."""
    view = view_explanation(explanation)
    return _render("explanation.html.j2", sample=view, title=f"Sample {view['title']}")


def _render(template: str, **values: object) -> str:
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_text("page.css")),
            script=Markup(script),
            script_digest=f"sha256-{digest}",
            **values,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("circuitseer_assets.method"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _text(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
