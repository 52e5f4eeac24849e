"""Pages as notebooks, with the package that they install."""
