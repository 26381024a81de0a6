"""Several processes that train one network: how they connect, what they exchange, and how they fail together."""
