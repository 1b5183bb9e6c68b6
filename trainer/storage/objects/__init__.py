"""Objects of Amazon S3 and Azure Blob Storage, by obstore.

`store` has the store of ``s3://`` and ``az://``, `services` what differs between them, `failures` what exceptions mean.
"""

# ruff: noqa: F401
from trainer.storage.objects.services import AZURE, S3
from trainer.storage.objects.store import ObjectStore
