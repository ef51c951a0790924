"""Comparisons that use the training harness: studies of the methods, and the embedding theorem on free embeddings."""
