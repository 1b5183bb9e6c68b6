# data: sources, masks, images.  runs: checkpoints, exports, reports.  batch: images to fill and filled ones.
# scratch: what Dataflow stages; a week old, it is deleted.

locals {
  buckets = {
    data    = { versioning = false, days = null }
    runs    = { versioning = true, days = null }
    batch   = { versioning = false, days = null }
    scratch = { versioning = false, days = 7 }
  }
}

resource "google_storage_bucket" "job" {
  #checkov:skip=CKV_GCP_62:Cloud Audit Logs tell who read what; usage logs need a bucket more, writable from outside.
  #checkov:skip=CKV_GCP_78:Runs are versioned; datasets are written once, under a checksum, and can be made again.
  for_each = local.buckets

  name                        = "${var.project}-${var.name}-${each.key}"
  location                    = var.region
  force_destroy               = var.delete_buckets
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = each.value.versioning
  }

  soft_delete_policy {
    retention_duration_seconds = each.key == "scratch" ? 0 : 604800
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.days == null ? [] : [each.value.days]

    content {
      condition {
        age = lifecycle_rule.value
      }
      action {
        type = "Delete"
      }
    }
  }

  # Pointers such as latest.json move at each checkpoint; a month of their past is enough.
  dynamic "lifecycle_rule" {
    for_each = each.value.versioning ? [30] : []

    content {
      condition {
        days_since_noncurrent_time = lifecycle_rule.value
      }
      action {
        type = "Delete"
      }
    }
  }

  lifecycle_rule {
    condition {
      age = 7
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [google_project_service.used]
}
