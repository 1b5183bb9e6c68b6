"""Transforms and helpers that any job may use."""
