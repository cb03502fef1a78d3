"""All that knows a cluster: the command line, recipes, launching on Ray, tracking with MLflow."""
