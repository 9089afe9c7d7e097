"""What a run leaves behind: metrics, progress, tables, records, results."""
