terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.20"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
  }

  # State names every resource: keep it in a bucket of its own, given at `terraform init -backend-config=bucket=...`.
  backend "gcs" {
    prefix = "pconv"
  }
}

provider "google" {
  project = var.project
  region  = var.region
}
