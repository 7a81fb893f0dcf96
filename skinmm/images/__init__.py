"""Images and their headers: bytes to pixels, preprocessing, measurements."""
