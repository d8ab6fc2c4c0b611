"""A client's answer to a message, wherever its app runs: a reply, or an error that says why there is none."""

from __future__ import annotations

import traceback

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedsim.errors import ProtocolError

CLIENT_RAISED = 1
"""The error code of a reply whose client raised an exception."""


def answered(app: ClientApp, message: Message, context: Context) -> Message:
    """What the app replies. A client that raises is answered for with an error message that holds the reason."""
    try:
        return app(message, context)
    except ProtocolError as error:  # said on purpose, in words that need no place in the code
        return refused(message, f"{type(error).__name__}: {error}")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return refused(message, f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})")


def refused(message: Message, reason: str) -> Message:
    """An error in the place of a reply."""
    return Message(Error(CLIENT_RAISED, reason), reply_to=message)
