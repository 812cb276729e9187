"""Measurements of reghead against its peers; not part of the package."""
