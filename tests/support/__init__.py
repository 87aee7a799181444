"""What several tests share: slides, stores, cohorts and slow references."""
