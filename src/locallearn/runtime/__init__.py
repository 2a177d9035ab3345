"""Where blocks run: one process, or one per stage; `conf/runtime/*.yaml` is the list."""
