"""What can be done with a job, whoever wrote it."""
