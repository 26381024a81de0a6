"""Programs that host drop-ins, written from the papers: no package has them, yet many projects carry a copy."""
