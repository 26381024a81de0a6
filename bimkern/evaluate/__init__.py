"""What trained encoders learned: nearest neighbors and linear probes on frozen features, and how layers attend."""
