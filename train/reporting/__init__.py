"""The report of a run: figures, tables and the page that holds them."""
