"""What MLflow's page of a run says of it: a link back to the run in Dagster, the asset, the ids."""

import os
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from circuitseer_assets.method.tables import escape_text

UI_BASE_VARIABLE = "CIRCUITSEER_DAGSTER_UI"
"""Where links to Dagster's pages lead; a run cannot know by which address people reach them."""
_UI_BASE = "http://127.0.0.1:3000"


def note_of(tags: Mapping[str, str | None]) -> str | None:
    """Returns the description, in Markdown, of a run with these tags; None if Dagster has no part.

    `dagster_asset` may name several, after commas; every other tag that ends with `_id` is listed.
    """
    run_id = tags.get("dagster_run_id")
    if not run_id:
        return None
    assets = (tags.get("dagster_asset") or "").split(", ")
    links = [_asset_link(name, tags.get("dagster_partition")) for name in assets if name]
    artifacts = [
        f"- {escape_text(name.removesuffix('_id'))}: {escape_text(value)}"
        for name, value in tags.items()
        if name.endswith("_id") and name != "dagster_run_id" and value
    ]
    of = f" of {', '.join(links)}" if links else ""
    said = f"Made by the [Dagster run]({_page('runs', run_id)}){of}."
    return "\n".join([said, "", *artifacts]).rstrip()


def _asset_link(name: str, partition: str | None) -> str:
    query = f"?{urlencode({'view': 'partitions', 'partition': partition})}" if partition else ""
    said = f"{name} ({partition})" if partition else name
    return f"[{escape_text(said)}]({_page('assets', *name.split('/'))}{query})"


def _page(*parts: str) -> str:
    base = os.environ.get(UI_BASE_VARIABLE) or _UI_BASE
    path = "/".join(quote(part, safe="") for part in parts)
    # A bracket or a space would end the link.
    return f"{quote(base.rstrip('/'), safe=':/@[]%')}/{path}"
