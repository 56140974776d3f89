"""What it is for: from an encoder and labels to a diagnosis and its figures."""
