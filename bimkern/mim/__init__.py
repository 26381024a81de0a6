"""The pieces of a masked-image-modeling method: masker, target, flow, schedule. None knows a method's name."""
