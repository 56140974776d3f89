"""What a run sees: cases, shards, order. Knows no methods."""
