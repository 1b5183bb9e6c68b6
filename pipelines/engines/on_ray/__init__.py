"""Jobs on a Ray cluster: Ray Data carries the items, Ray's tasks and actors do what is before, after and lost."""
