# With kubernetes = true: a GKE cluster for the jobs of infra/kuberay, and KubeRay in it. Nodes have no public address;
# the control plane has none either, but a name, behind which Google asks everyone who he is.

locals {
  kubernetes = toset(var.kubernetes ? ["cluster"] : [])
}

# KubeRay's images are on quay.io, which nodes without a way out reach through this repository alone.
resource "google_artifact_registry_repository" "quay" {
  #checkov:skip=CKV_GCP_84:It holds public images; Google's own keys encrypt them.
  for_each = local.kubernetes

  repository_id = "${var.name}-quay"
  location      = var.region
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"
  description   = "Images of quay.io"

  remote_repository_config {
    docker_repository {
      custom_repository {
        uri = "https://quay.io"
      }
    }
  }

  depends_on = [google_project_service.used]
}

# Nodes pull images and write logs; pods act as the account of their job, by Workload Identity.
resource "google_service_account" "nodes" {
  for_each = local.kubernetes

  account_id   = "${var.name}-nodes"
  display_name = "${var.name}: nodes of the Kubernetes cluster"

  depends_on = [google_project_service.used]
}

resource "google_project_iam_member" "nodes" {
  for_each = var.kubernetes ? toset(["roles/container.defaultNodeServiceAccount"]) : toset([])

  project = var.project
  role    = each.value
  member  = google_service_account.nodes["cluster"].member
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  for_each = !var.kubernetes ? {} : {
    images = google_artifact_registry_repository.images.name
    quay   = google_artifact_registry_repository.quay["cluster"].name
  }

  repository = each.value
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.nodes["cluster"].member
}

resource "google_container_cluster" "training" {
  #checkov:skip=CKV_GCP_12:Dataplane V2 enforces network policies; the other way to have them excludes it.
  #checkov:skip=CKV_GCP_20:The control plane has no address that networks could be authorized for.
  #checkov:skip=CKV_GCP_65:Who may do what is bound to project roles; groups need a Workspace domain.
  #checkov:skip=CKV_GCP_66:The images are this project's own; an attestor is for whoever has a build service.
  for_each = local.kubernetes

  name     = var.name
  location = var.region

  network    = google_compute_network.jobs.id
  subnetwork = google_compute_subnetwork.jobs.id
  ip_allocation_policy {}

  # Network policies hold with Dataplane V2; otherwise they would be taken, and do nothing.
  datapath_provider           = "ADVANCED_DATAPATH"
  enable_intranode_visibility = true

  private_cluster_config {
    enable_private_nodes = true
  }

  control_plane_endpoints_config {
    dns_endpoint_config {
      allow_external_traffic = true
    }
    ip_endpoints_config {
      enabled = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  release_channel {
    channel = "REGULAR"
  }

  resource_labels          = { app = var.name }
  remove_default_node_pool = true
  initial_node_count       = 1
  deletion_protection      = false # It holds nothing that is not in a bucket.

  # The pool that is removed again would otherwise need the default account.
  node_config {
    service_account = google_service_account.nodes["cluster"].email

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  lifecycle {
    ignore_changes = [node_config]
  }

  depends_on = [google_project_service.used]
}

locals {
  pools = {
    # The operator, heads of Ray clusters, and what submits jobs.
    base = { machine = "e2-standard-8", gpu = null, zones = null, min = 1, max = 4, spot = false }
    gpu  = { machine = var.gpu_machine, gpu = var.gpu, zones = var.zones, min = 0, max = var.gpu_nodes, spot = var.gpu_spot }
    # Workers of inpaint.yaml without a GPU.
    cpu = { machine = "n2-standard-8", gpu = null, zones = null, min = 0, max = var.cpu_nodes, spot = var.cpu_spot }
  }
}

resource "google_container_node_pool" "pool" {
  for_each = { for name, pool in local.pools : name => pool if var.kubernetes }

  name           = each.key
  cluster        = google_container_cluster.training["cluster"].id
  node_locations = each.value.zones

  autoscaling {
    total_min_node_count = each.value.min
    total_max_node_count = each.value.max
    location_policy      = "ANY" # whichever zone has some
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine
    image_type      = "COS_CONTAINERD"
    spot            = each.value.spot
    disk_type       = "pd-balanced"
    disk_size_gb    = 200
    service_account = google_service_account.nodes["cluster"].email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]

    # Images of gigabytes start before all of them is there.
    gcfs_config {
      enabled = true
    }

    gvnic {
      enabled = true
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    dynamic "guest_accelerator" {
      for_each = each.value.gpu == null ? [] : [each.value.gpu]

      content {
        type  = guest_accelerator.value
        count = 1

        gpu_driver_installation_config {
          gpu_driver_version = "DEFAULT"
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.nodes,
    google_project_iam_member.nodes,
  ]
}

# Whom the accounts in infra/kuberay/namespace.yaml act as. The pool of identities that is named comes with the cluster.
resource "google_service_account_iam_member" "kubernetes" {
  for_each = var.kubernetes ? toset(["trainer", "inference"]) : toset([])

  service_account_id = google_service_account.job[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[pconv/${each.key}]"

  depends_on = [google_container_cluster.training]
}

moved {
  from = google_service_account_iam_member.kubernetes["cluster"]
  to   = google_service_account_iam_member.kubernetes["trainer"]
}

data "google_client_config" "own" {}

provider "helm" {
  kubernetes = {
    host = try(
      "https://${google_container_cluster.training["cluster"].control_plane_endpoints_config[0].dns_endpoint_config[0].endpoint}",
      "https://no-cluster.invalid",
    )
    token = data.google_client_config.own.access_token
  }
}

resource "helm_release" "kuberay" {
  for_each = local.kubernetes

  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm"
  chart            = "kuberay-operator"
  version          = var.kuberay_version
  namespace        = "kuberay"
  create_namespace = true

  set = [
    {
      name  = "image.repository"
      value = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.quay["cluster"].name}/kuberay/operator"
    },
  ]

  depends_on = [google_container_node_pool.pool]
}
