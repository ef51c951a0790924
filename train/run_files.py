"""The names of the files in a run's output directory, for those who write them and those who read them."""

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"
EMBEDDINGS_FILE = "embeddings.npz"
CHECKPOINT_FILE = "checkpoint.pt"
DIVERGED_FILE = "diverged.pt"
REPORT_FILE = "report.html"
