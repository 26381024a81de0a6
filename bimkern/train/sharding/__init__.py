"""What each rank has of parameters and of the optimizer's state, and how it reaches the others."""
