"""Sources of images, one file for each kind; find.py chooses by what --data names."""
