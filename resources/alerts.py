"""Telling people outside: one JSON message to a webhook."""

import json
import urllib.error
import urllib.request

from circuitseer_assets.errors import AlertError

TIMEOUT_S = 10


def post_alert(address: str, text: str) -> None:
    """Posts {"text": text}, the form that Slack, Mattermost, Teams and Zulip take.

    Raises:
        AlertError: it was not taken; the message does not repeat the address, which is a secret.
    """
    try:
        if not address.startswith(("http://", "https://")):
            raise ValueError("it begins neither with http:// nor with https://")
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(address, body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        raise _not_taken(f"it answered {error.code}") from None
    except (OSError, ValueError) as error:
        raise _not_taken(str(getattr(error, "reason", error))) from None


def _not_taken(reason: str) -> AlertError:
    return AlertError(
        f"the failure webhook must be an http(s) address that takes a message, got none taken "
        f"({reason}); correct the variable that automation.failure_webhook_variable names"
    )
