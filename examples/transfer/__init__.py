"""What the examples of detection and segmentation share."""
