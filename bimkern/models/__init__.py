"""Networks: encoders with stages and taps, and the heads that turn a tap into a prediction."""
