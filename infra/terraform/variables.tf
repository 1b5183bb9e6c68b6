variable "project" {
  type        = string
  description = "Project that everything is made in; billing is on."
}

variable "region" {
  type        = string
  description = "Region of buckets, images and workers: the same, so that no byte is charged for crossing one."
  default     = "us-central1"
}

variable "zones" {
  type        = list(string)
  description = "Zones that offer the GPU: a cluster of `ray up` is in the first, unless PCONV_ZONE names another; Kubernetes takes nodes from any."
  default     = ["us-central1-a", "us-central1-b", "us-central1-c"]

  validation {
    condition     = length(var.zones) > 0 && alltrue([for zone in var.zones : startswith(zone, "${var.region}-")])
    error_message = "zones: expected zones of the region, at least one."
  }
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

variable "operators" {
  type        = list(string)
  description = "Who may push images, make Ray clusters and apply RayJobs, for example [\"user:ada@example.org\"]."
  default     = []

  validation {
    condition     = alltrue([for who in var.operators : can(regex("^(user|group|serviceAccount):", who))])
    error_message = "operators: expected user:, group: or serviceAccount: members; never allUsers."
  }
}

variable "dataflow_condition" {
  type        = bool
  description = "Keep Dataflow's own role from storage; false if workers are then refused what they need elsewhere."
  default     = true
}

variable "kubernetes" {
  type        = bool
  description = "Make a GKE cluster with GPU nodes and KubeRay, whose pods train and inpaint."
  default     = false
}

variable "kuberay_version" {
  type        = string
  description = "Of KubeRay's Helm chart."
  default     = "1.5.1"
}

variable "gpu" {
  type        = string
  description = "GPU of a Kubernetes node, one each."
  default     = "nvidia-l4"
}

variable "gpu_machine" {
  type        = string
  description = "Machine type of a Kubernetes node with a GPU."
  default     = "g2-standard-8"
}

variable "gpu_nodes" {
  type        = number
  description = "The most Kubernetes nodes with a GPU; there are none while no job needs them."
  default     = 4
}

variable "gpu_spot" {
  type        = bool
  description = "Take spot machines for Kubernetes nodes with a GPU."
  default     = false
}

variable "cpu_nodes" {
  type        = number
  description = "The most Kubernetes nodes for workers without a GPU; there are none while no job needs them."
  default     = 8
}

variable "cpu_spot" {
  type        = bool
  description = "Take spot machines for Kubernetes nodes without a GPU: inpainting makes again what is lost with one."
  default     = false
}

variable "delete_buckets" {
  type        = bool
  description = "Let `terraform destroy` delete buckets that are not empty. Set it, apply, then destroy."
  default     = false
}
