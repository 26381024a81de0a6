"""What the commands share: their options, how they begin, and how they end."""
