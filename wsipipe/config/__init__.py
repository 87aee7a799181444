"""Options of every stage, and the strict reader of pipeline.yaml."""
