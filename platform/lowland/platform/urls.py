"""URLs with passwords: shown and written without them, whole again from the environment."""

import os
import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from lowland.trainers.errors import UserError

HIDDEN = "***"
_SECRET = re.compile(r"passw|secret|token|^pwd$|^key$|api_?key", re.IGNORECASE)
"""Names of query fields that hold what others must not see."""


def redact(uri: str) -> str:
    """The URI without its password, fit to be shown and stored."""
    parts = urlsplit(uri)
    if not parts.password and not any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        return uri
    host = parts.netloc.rpartition("@")[2]
    place = f"{parts.username or ''}:{HIDDEN}@{host}" if parts.password else parts.netloc
    fields = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, HIDDEN if _SECRET.search(name) else value) for name, value in fields], safe="*/")
    return urlunsplit(parts._replace(netloc=place, query=query))


def whole(uri: str, variable: str) -> str:
    """The URI with its password, if it was stored without: an environment variable must hold the whole of it.

    Raises:
        UserError: the variable is not set, or holds another URI.
    """
    if HIDDEN not in uri:
        return uri
    given = os.environ.get(variable, "")
    if redact(given) == uri:
        return given
    raise UserError(f"passwords are not kept in files: set {variable} to {uri} with its password")


def without_secrets(text: str, uri: str) -> str:
    """A text, as of an error, in which the URI's password does not appear."""
    parts = urlsplit(uri)
    secrets = [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
    for secret in filter(None, [parts.password, *secrets]):
        text = text.replace(secret, HIDDEN).replace(unquote(secret), HIDDEN)
    return text
