"""What encodings that mix images need after an inversion: regression from the encodings of many rounds."""
