"""The refinements of score maps, one module each: the modules of this folder are the choices of `--refine`."""
