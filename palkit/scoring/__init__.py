"""The scoring pass over a pool, its cached inputs and batches."""
