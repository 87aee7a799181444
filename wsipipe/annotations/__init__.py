"""What a person drew on a slide: mask images, QuPath GeoJSON and ASAP XML."""
