"""Tunedrop's code layer: drop a dataset into a bucket, get a fine-tuned model or a precise reason why not."""
