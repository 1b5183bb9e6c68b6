"""What obstore's exceptions say, and this project's errors for them.

obstore tells a few by class. Of the others a text tells: what the server has said, or what kept the client from an
answer.
"""

from __future__ import annotations

import re

from trainer.errors import Conflict, Denied, NotFound, Outage, UserError
from trainer.storage import attempts

# An error's text: what a server has said, or what kept the client from an answer, and then the client's own variables.
_DEBUG = "\n\nDebug source"
_STATUS = re.compile(r"status code: (\d{3}) ?([^:]*):?\s*(.*)", re.DOTALL)
_CODE = re.compile(r"<Code>(.*?)</Code>")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_REQUEST = re.compile(r"Error performing \w+ (https?://[^/?\s]+)")
_REASON = re.compile(r'(?:message|error): "([^"]+)"')
# Of the machine's metadata, of roles, and of settings.
_NO_CREDENTIALS = re.compile(
    "/latest/(api|meta-data)/|/metadata/identity/|token request|token file|ExpiredToken|Missing(Acc|Secret)|Azure CLI"
)
_NO_TRUST = re.compile(r"InvalidCertificate\(\s*(\w+)")


def status_of(error: BaseException) -> tuple[int, str, str]:
    """Status, reason and body of the answer that ``error`` is; 0 if there was none."""
    found = _STATUS.search(str(error).partition(_DEBUG)[0])
    return (int(found[1]), found[2].strip(), found[3].strip()) if found else (0, "", "")


def is_past_end(error: BaseException) -> bool:
    """Whether a range was asked for that begins where the object ends: the server says so, or the client."""
    return status_of(error)[0] == 416 or "Wanted range starting at" in str(error)


def kind_of(error: BaseException) -> attempts.Kind:
    """What an exception of the client says."""
    from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

    if isinstance(error, attempts.Damaged):
        return "unanswered"
    status, _, body = status_of(error)
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "refused"
    if not isinstance(error, GenericError):
        return "answered"
    if status in (401, 403) or _NO_CREDENTIALS.search(str(error)) or _NO_TRUST.search(str(error)):
        return "refused"
    if status == 404:  # of a list
        return "absent"
    if status in (0, 408, 409, 429) or (status >= 500 and status != 501) or "<Code>RequestTimeout<" in body:
        return "unanswered"
    return "answered"


def ours(error: Exception, seconds: float, address: str, name: str, hint: str) -> Exception:
    """This project's error for what the client has raised."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    if isinstance(error, AlreadyExistsError | PreconditionError):
        return Conflict(address)
    if not isinstance(error, BaseError | FileNotFoundError | ValueError | attempts.Damaged):
        return error
    kind, text = kind_of(error), text_of(error)
    if kind == "absent":
        return NotFound(f"{address} does not exist (no such bucket or object)")
    if kind == "unanswered":
        return Outage(f"{address}: no answer from {name} that can be used, for {seconds:.0f} s: {text}")
    if _NO_CREDENTIALS.search(str(error)):
        return Denied(f"no credentials for {address}: set {hint} ({text})")
    if kind == "refused":
        return Denied(f"{address} may not be used: {text}")
    return UserError(f"{address} may not be used: {text}")


def text_of(error: BaseException) -> str:
    """One line for an exception of the client, without queries of addresses: they may hold signatures."""
    said, _, debug = str(error).partition(_DEBUG)
    status, reason, body = status_of(error)
    if status:
        parts = [found[1] for pattern in (_CODE, _MESSAGE) if (found := pattern.search(body))]
        text = f"{status} {reason}: {': '.join(parts) or body}"
    elif asked := _REQUEST.search(said):
        reasons = _REASON.findall(debug) or [said.rpartition(" - ")[2]]
        if found := _NO_TRUST.search(debug):
            reasons = [f"its certificate is not trusted ({found[1]}); SSL_CERT_FILE names the file with its authority"]
        text = f"{asked[1]}: {reasons[-1]}"
    else:
        text = re.sub(r"^Generic \w+ error: ", "", said)
    return " ".join(text.split())[:300].rstrip(": ")
