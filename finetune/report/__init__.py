"""The page of a results folder, and its figures as files."""
