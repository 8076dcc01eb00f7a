"""Take secrets out of what is shown: URLs, and text that may hold URLs."""

from __future__ import annotations

import re

HIDDEN = "***"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SECRET_OPTION = re.compile(
    r"([?&][^=&#\s]*(?:password|passwd|passphrase|secret|token)[^=&#\s]*=)[^&#\s]*", re.IGNORECASE
)


def redact_url(url: str) -> str:
    """Give a URL with its password, and its options that hold secrets, replaced by ``***``.

    Everything from the first colon of the user part to the last ``@`` goes, so that a password with
    unescaped ``@``, ``/`` or ``?`` in it is hidden whole; an ``@`` in an option of a URL without a
    user can hide more than it needs to.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        rest = f"{user.partition(':')[0]}:{HIDDEN}@{place}"
    return _SECRET_OPTION.sub(rf"\g<1>{HIDDEN}", scheme + separator + rest)


def redact_text(text: str) -> str:
    """Give a text with every URL in it redacted (see ``redact_url``)."""
    if "://" not in text:
        return text
    return _URL.sub(lambda match: redact_url(match[0]), text)
