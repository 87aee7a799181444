"""TIFF structure: directories, pages, compressed tiles and the JPEG streams in them."""
