"""The console: pages for the lead of a project, their actions, sessions and assets."""
