"""What knows Ray: joining a cluster, and the processes that work on one. Ray itself is imported on first use."""
