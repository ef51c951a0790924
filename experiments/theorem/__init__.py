"""The embedding theorem on free embeddings, without a network (docs/embedding-theorem.md)."""
