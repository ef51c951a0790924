"""One loss over the processes of a group: rows are gathered, codes are sharded over the ranks."""
