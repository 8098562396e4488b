"""A stage of training: its recipe, what it starts from, what it trains, and the repository that it leaves."""
