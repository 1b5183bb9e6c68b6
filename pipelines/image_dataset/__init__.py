"""The image dataset job: folders, tars and ImageNet releases to records."""
