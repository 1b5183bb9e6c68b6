output "environment" {
  description = "What the commands and files of infra/ ask for: eval \"$(terraform -chdir=infra/terraform output -raw environment)\""
  value = join("", [for name, value in merge(
    {
      PROJECT    = var.project
      REGION     = var.region
      ZONE       = var.zones[0]
      ZONES      = join(" ", var.zones)
      NAME       = var.name
      SUBNETWORK = "regions/${var.region}/subnetworks/${google_compute_subnetwork.jobs.name}"
      REPOSITORY = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.name}"
      TAG        = var.image_tag
    },
    { for key, bucket in google_storage_bucket.job : upper(key) => "gs://${bucket.name}" },
    { for key, account in google_service_account.job : "${upper(replace(key, "-", "_"))}_ACCOUNT" => account.email },
  ) : "export PCONV_${name}='${value}'\n"])
}
