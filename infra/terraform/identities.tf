# One service account per job, with the folders it needs. No keys: workers ask the metadata server.

locals {
  read  = "roles/storage.objectViewer"
  write = "roles/storage.objectUser" # reads, too

  # Folder and bucket.
  folders = {
    sources  = "data"
    masks    = "data"
    imagenet = "data"
    runs     = "runs"
    reports  = "runs"
    in       = "batch"
    holes    = "batch"
    out      = "batch"
    staging  = "scratch"
  }

  accounts = {
    masks      = { read = ["sources"], write = ["masks", "staging"] }
    imagenet   = { read = ["sources"], write = ["imagenet", "staging"] }
    trainer    = { read = ["masks", "imagenet"], write = ["runs"] }
    inference  = { read = ["runs", "in", "holes"], write = ["out", "staging"] }
    evaluation = { read = ["runs", "masks", "imagenet"], write = ["reports", "staging"] }
    # On a Ray cluster of `ray up` every job acts as its machines, whoever may start one: these train, inpaint and
    # evaluate. The head is where jobs are started, and it adds and removes workers.
    ray-worker = { read = ["masks", "imagenet", "in", "holes"], write = ["runs", "out", "reports"] }
    ray-head   = { read = ["masks", "imagenet", "in", "holes"], write = ["runs", "out", "reports"] }
  }

  on_dataflow = toset(["masks", "imagenet", "inference", "evaluation"])

  grants = merge(flatten([
    for account, access in local.accounts : [
      { for folder in access.read : "${account} reads ${folder}" => [account, folder, local.read] },
      { for folder in access.write : "${account} writes ${folder}" => [account, folder, local.write] },
    ]
  ])...)
}

resource "google_service_account" "job" {
  for_each = local.accounts

  account_id   = "${var.name}-${each.key}"
  display_name = "${var.name}: ${each.key}"

  depends_on = [google_project_service.used]
}

resource "google_storage_managed_folder" "job" {
  for_each = local.folders

  bucket        = google_storage_bucket.job[each.value].name
  name          = "${each.key}/"
  force_destroy = var.delete_buckets
}

resource "google_storage_managed_folder_iam_member" "job" {
  for_each = local.grants

  bucket         = google_storage_managed_folder.job[each.value[1]].bucket
  managed_folder = google_storage_managed_folder.job[each.value[1]].name
  role           = each.value[2]
  member         = google_service_account.job[each.value[0]].member
}

resource "google_artifact_registry_repository_iam_member" "pull" {
  for_each = local.accounts

  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.job[each.key].member
}

resource "google_project_iam_member" "dataflow_worker" {
  for_each = local.on_dataflow

  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.job[each.key].member

  # The role reads and makes objects in every bucket of the project; the folders above are what the job needs. Google
  # does not say what the condition does to a service that knows no attributes of resources: infra/README.md, step 3.
  dynamic "condition" {
    for_each = var.dataflow_condition ? ["no-storage"] : []

    content {
      title      = condition.value
      expression = "resource.service != \"storage.googleapis.com\""
    }
  }
}

# What Ray's autoscaler calls (ray/autoscaler/_private/gcp/node.py), and no more.
resource "google_project_iam_custom_role" "ray_head" {
  role_id     = replace("${var.name}_ray_head", "-", "_")
  title       = "${var.name}: adds and removes Ray workers"
  description = "Instances, and what making one needs"
  permissions = [
    "compute.disks.create",
    "compute.images.useReadOnly",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.get",
    "compute.instances.list",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setServiceAccount",
    "compute.instances.setTags",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.subnetworks.use",
    "compute.zoneOperations.get",
  ]
}

resource "google_project_iam_member" "ray_head" {
  project = var.project
  role    = google_project_iam_custom_role.ray_head.id
  member  = google_service_account.job["ray-head"].member
}

resource "google_service_account_iam_member" "ray_head_starts_workers" {
  service_account_id = google_service_account.job["ray-worker"].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.job["ray-head"].member
}

# `ray up` makes this account if it is missing and grants it compute.admin and storage.objectAdmin on the whole
# project, whether the cluster uses it or not (ray/autoscaler/_private/gcp/config.py). Ours does not use it.
resource "google_service_account" "unused_by_ray" {
  account_id   = "ray-autoscaler-sa-v1"
  display_name = "Disabled: taken so that Ray does not make it"
  disabled     = true

  depends_on = [google_project_service.used]
}

# People who submit jobs.

resource "google_service_account_iam_member" "launcher" {
  for_each = { for pair in setproduct(var.launchers, keys(local.accounts)) : join(" ", pair) => pair }

  service_account_id = google_service_account.job[each.value[1]].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value[0]
}

resource "google_storage_bucket_iam_member" "launcher" {
  for_each = { for pair in setproduct(var.launchers, keys(local.buckets)) : join(" ", pair) => pair }

  bucket = google_storage_bucket.job[each.value[1]].name
  role   = local.write
  member = each.value[0]
}

resource "google_project_iam_member" "launcher" {
  for_each = {
    for pair in setproduct(var.launchers, ["roles/dataflow.developer"]) : join(" ", pair) => pair
  }

  project = var.project
  role    = each.value[1]
  member  = each.value[0]
}

# People who push images, and who make Ray clusters and look into them.

resource "google_artifact_registry_repository_iam_member" "push" {
  for_each = toset(var.operators)

  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.writer"
  member     = each.value
}

# What `ray up`, `ray down` and the tunnel call here; the head itself does the rest. `ray up` also looks who is bound
# to what in the project, and binds its own account where it finds it missing, which only an owner may.
resource "google_project_iam_custom_role" "operator" {
  role_id     = replace("${var.name}_operator", "-", "_")
  title       = "${var.name}: makes Ray clusters"
  description = "The head's own rights, and to read the project"
  permissions = setunion(google_project_iam_custom_role.ray_head.permissions, [
    "compute.disks.get",
    "compute.projects.get",
    "compute.zones.get",
    "iam.serviceAccounts.get",
    "resourcemanager.projects.get",
    "resourcemanager.projects.getIamPolicy",
    "serviceusage.services.use",
  ])
}

locals {
  operator_roles = merge(
    {
      machines = google_project_iam_custom_role.operator.id
      tunnel   = "roles/iap.tunnelResourceAccessor"
    },
    var.kubernetes ? { kubernetes = "roles/container.developer" } : {},
  )
}

resource "google_project_iam_member" "operator" {
  for_each = { for pair in setproduct(var.operators, keys(local.operator_roles)) : join(" ", pair) => pair }

  project = var.project
  role    = local.operator_roles[each.value[1]]
  member  = each.value[0]
}

resource "google_service_account_iam_member" "operator" {
  for_each = { for pair in setproduct(var.operators, ["ray-head", "ray-worker"]) : join(" ", pair) => pair }

  service_account_id = google_service_account.job[each.value[1]].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value[0]
}
