"""The Beam jobs: wiring over pure functions of `masks` and `trainer`."""
