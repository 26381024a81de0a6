"""The pieces of a masked-image-modelling method: masker, target, gradient flow, schedule. None knows a method's name."""
