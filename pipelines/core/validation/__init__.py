"""What an interval must be to be accepted, as suites of checks, and the pages that show what came of them."""
