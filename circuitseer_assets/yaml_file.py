"""Reads a mapping from a YAML file, and refuses what YAML allows and nobody means."""

from pathlib import Path
from typing import Any

import yaml

from circuitseer_assets.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """Builds plain values alone, each key of a mapping once, and repeats nothing.

    A few lines that repeat each other stand for more than the memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"repeats the part *{event.anchor}; write it out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"sets {key.value!r} twice; keep one", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[Any, Any]:
    """Returns the mapping that the YAML file at `path` holds.

    Raises:
        SettingsError: the file is not YAML in UTF-8, holds no mapping, repeats a part by alias, or
            sets a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise SettingsError(f"{path} must be a YAML file in UTF-8: {reason[:300]}") from error
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} must hold a mapping of slices, got {type(values).__name__}; "
            f"presets/tiny.yaml is a complete example"
        )
    return values
