"""The grader of programs: it runs them on tests in a sandbox."""
