variable "project" {
  type        = string
  description = "Project that everything is made in; billing is on."
}

variable "region" {
  type        = string
  description = "Region of buckets, images and workers: the same, so that no byte is charged for crossing one."
  default     = "us-central1"
}

variable "zone" {
  type        = string
  description = "Zone of the Ray cluster; it must offer the GPU."
  default     = "us-central1-a"
}

variable "name" {
  type        = string
  description = "Begins the name of every resource."
  default     = "pconv"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,14}$", var.name))
    error_message = "name: expected 2 to 15 lower-case letters, digits and hyphens."
  }
}

variable "image_tag" {
  type        = string
  description = "Tag of the two container images; a tag in the registry is never moved."

  validation {
    condition     = can(regex("^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "image_tag: expected a version or a commit, not latest."
  }
}

variable "launchers" {
  type        = list(string)
  description = "Who may submit jobs, for example [\"user:ada@example.org\"]."
  default     = []

  validation {
    condition     = alltrue([for who in var.launchers : can(regex("^(user|group|serviceAccount):", who))])
    error_message = "launchers: expected user:, group: or serviceAccount: members; never allUsers."
  }
}

variable "kubernetes" {
  type        = bool
  description = "Let the Kubernetes service account pconv/trainer act as the trainer; the project needs a GKE cluster with Workload Identity."
  default     = false
}

variable "delete_buckets" {
  type        = bool
  description = "Let `terraform destroy` delete buckets that are not empty. Set it, apply, then destroy."
  default     = false
}
