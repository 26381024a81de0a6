"""Masked image modeling as most programs write it, to be measured against: plain torch, eager, from the papers."""
