"""Dagster's instance, to which no secret is written: what failed is stored as it was raised.

`dagster.yaml` names the class; every process that works with a home then has it, whichever storage
it writes to.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import deserialize_value, serialize_value

from circuitseer_assets.redaction import redact, redact_logs

if TYPE_CHECKING:
    from dagster import EventLogEntry
    from dagster._core.scheduler.instigation import InstigatorTick, TickData

Stored = TypeVar("Stored")


class RedactingInstance(dg.DagsterInstance):
    """Takes the secrets out of every event and of every tick of a sensor or schedule."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        redact_logs()

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        """Returns what dagster.yaml may say of this class: nothing."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Returns Dagster's own defaults."""
        return InstanceRef.config_defaults(base_dir)

    def store_event(self, event: "EventLogEntry") -> None:
        """Stores an event."""
        super().store_event(_redacted(event))

    def handle_new_event(self, event: "EventLogEntry", **kwargs: Any) -> None:
        """Stores an event, and tells who listens."""
        super().handle_new_event(_redacted(event), **kwargs)

    def create_tick(self, tick_data: "TickData") -> "InstigatorTick":
        """Stores that a sensor or schedule is looked at."""
        return super().create_tick(_redacted(tick_data))

    def update_tick(self, tick: "InstigatorTick") -> Any:
        """Stores how that went."""
        return super().update_tick(_redacted(tick))


def _redacted(value: Stored) -> Stored:
    text = serialize_value(value)  # type: ignore[arg-type]
    kept = redact(text)
    return value if kept == text else deserialize_value(kept, type(value))  # type: ignore[type-var]
