"""Annotations: what a person drew on a slide, as mask images, QuPath GeoJSON or ASAP XML."""
