"""One file per family of methods; `conf/strategy/*.yaml` is the list of them."""
