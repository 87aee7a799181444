"""The methods, one module or package each: the modules of this folder are the choices of `--method`."""
