"""What more devices would bring: blocks measured, schedules simulated and drawn. Nothing here trains."""
