"""Fine-tuning: the task of classification, and a whole run of it."""
