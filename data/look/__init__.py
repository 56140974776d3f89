"""A dataset on one page."""
