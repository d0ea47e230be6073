"""Files, tables and shards that stay whole, and values that come from outside."""
