"""The pieces of a masked-image-modelling method: masker, target, flow, schedule. None knows a method's name."""
