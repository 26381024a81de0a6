"""Files that survive a crash, a full disk and a disk that does not answer."""
