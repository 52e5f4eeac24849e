"""The whole book in print; the build does without."""
