# Services, the image registry, and a network without public addresses.

resource "google_project_service" "used" {
  for_each = toset(concat([
    "artifactregistry.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "iap.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "oslogin.googleapis.com",
    "storage.googleapis.com",
  ], var.kubernetes ? ["container.googleapis.com", "containerfilesystem.googleapis.com"] : []))

  service            = each.key
  disable_on_destroy = false
}

resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:Images hold no secrets; Google's own keys encrypt them.
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "Images of the Beam jobs and of training"

  docker_config {
    immutable_tags = true
  }

  depends_on = [google_project_service.used]
}

resource "google_compute_network" "jobs" {
  name                    = var.name
  auto_create_subnetworks = false

  depends_on = [google_project_service.used]
}

# No NAT and no public addresses: workers reach Google's services, and nothing else.
resource "google_compute_subnetwork" "jobs" {
  #checkov:skip=CKV_GCP_76:The network has no IPv6 addresses.
  name                     = var.name
  network                  = google_compute_network.jobs.id
  region                   = var.region
  ip_cidr_range            = "10.128.0.0/20"
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "EXCLUDE_ALL_METADATA"
  }
}

# Ray chooses its ports freely, and asks for a token. TensorFlow's servers listen on 20000 to 20999 and ask for nothing:
# this rule, which lets in nodes of the cluster alone, is their only guard. Training is started with --trusted-network.
resource "google_compute_firewall" "ray" {
  name        = "${var.name}-ray"
  network     = google_compute_network.jobs.id
  description = "Nodes of one Ray cluster to each other"
  source_tags = ["${var.name}-ray"]
  target_tags = ["${var.name}-ray"]

  allow {
    protocol = "tcp"
  }
}

# https://cloud.google.com/dataflow/docs/guides/routes-firewall
resource "google_compute_firewall" "dataflow" {
  name        = "${var.name}-dataflow"
  network     = google_compute_network.jobs.id
  description = "Dataflow's workers to each other; the tag is the service's"
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]

  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}

# https://cloud.google.com/iap/docs/using-tcp-forwarding
resource "google_compute_firewall" "ssh" {
  name          = "${var.name}-ssh"
  network       = google_compute_network.jobs.id
  description   = "SSH from Google's Identity-Aware Proxy, which asks who it is"
  source_ranges = ["35.235.240.0/20"]
  target_tags   = ["${var.name}-ray"]

  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}
