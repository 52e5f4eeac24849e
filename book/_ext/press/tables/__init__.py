"""Boards, indexes and the reference: pages that the build fills."""
