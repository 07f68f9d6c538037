"""Telling people outside: one JSON message to a webhook."""

import http.client
import json
import time
import urllib.error
import urllib.request

from circuitseer_assets.errors import AlertError
from circuitseer_assets.redaction import redact

TIMEOUT_S = 10
PAUSES_S = (1.0, 3.0)  # a tick of the daemon may take 60 s, and tells of five runs


def post_alert(address: str, text: str) -> None:
    """Posts {"text": text}, the form that Slack, Mattermost, Teams and Zulip take.

    A server that cannot be reached, or says that it is busy or broken (429, 5xx), is tried again
    after each pause. One that does not answer is not: it may have taken the message.

    Raises:
        AlertError: it was not taken; the message does not repeat the address, which is a secret.
    """
    if not address.startswith(("http://", "https://")):
        raise _not_taken("it begins neither with http:// nor with https://")
    body = json.dumps({"text": redact(text)}).encode()
    for pause_s in (*PAUSES_S, None):
        try:
            request = urllib.request.Request(address, body, {"content-type": "application/json"})
            urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
            return
        except urllib.error.HTTPError as error:
            reason, may_pass = f"it answered {error.code}", error.code == 429 or error.code >= 500
        except urllib.error.URLError as error:
            reason, may_pass = str(error.reason), not isinstance(error.reason, TimeoutError)
        except http.client.InvalidURL:  # its message repeats the address
            reason, may_pass = "it must be host, port and path without spaces", False
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason, may_pass = str(error), False
        if pause_s is None or not may_pass:
            raise _not_taken(reason)
        time.sleep(pause_s)


def _not_taken(reason: str) -> AlertError:
    return AlertError(
        f"the failure webhook must be an http(s) address that takes a message, got none taken "
        f"({reason}); correct the variable that automation.failure_webhook_variable names"
    )
