"""Stale pages run, once, in parallel; the order of a build."""
