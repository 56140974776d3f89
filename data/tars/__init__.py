"""WebDataset tars of others, read without trust and indexed where they lie."""
