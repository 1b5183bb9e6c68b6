"""The services that `store` speaks with, and obstore's clients of their buckets."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import UserError
from trainer.storage.objects import failures

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

QUIET_S = 60  # without a byte of an answer there will be none
_READ_S = 3600  # of a whole object


@dataclass(frozen=True)
class Service:
    """What differs from one service to the other.

    Attributes:
        store: obstore's class.
        endpoints: variables with the server's address.
        bucket: what a bucket's name is.
        hint: what to set where there are no credentials.
        credentials: variables with credentials: of each group all are needed.
    """

    scheme: str
    name: str
    extra: str
    store: str
    endpoints: tuple[str, ...]
    bucket: re.Pattern[str]
    hint: str
    credentials: tuple[tuple[str, ...], ...]


S3 = Service(
    "s3",
    "S3",
    "s3",
    "S3Store",
    ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what gives the machine a role, and AWS_REGION",
    (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
    ),
)
AZURE = Service(
    "az",
    "Azure Blob Storage",
    "azure",
    "AzureStore",
    ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}"),
    "AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or what gives the machine an identity",
    (
        ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("AZURE_USE_AZURE_CLI", "AZURE_STORAGE_ACCOUNT_NAME"),
    ),
)


@functools.cache
def client(service: Service, bucket: str, upload_s: int | None) -> Client:
    """The process's client of a bucket; ``client.cache_clear()`` makes it read the environment again.

    Args:
        upload_s: seconds until a write is given up; None for a client that reads, as long as bytes arrive.
    """
    import obstore.store

    for variable in service.endpoints:
        if (endpoint := os.environ.get(variable)) and not re.match("https?://", endpoint):
            raise UserError(f"{variable}: expected http://HOST:PORT or https://HOST. Received {endpoint}")
    options = {"allow_http": True, "connect_timeout": "10s", "timeout": f"{upload_s or _READ_S}s"}
    if upload_s is None:
        options["read_timeout"] = f"{QUIET_S}s"
    try:
        return getattr(obstore.store, service.store)(bucket, client_options=options, retry_config={"max_retries": 0})
    except Exception as error:
        raise UserError(
            f"{service.scheme}://{bucket} cannot be used: {failures.text_of(error)}. Set {service.hint}"
        ) from None
