"""Files and pages that an evaluation leaves."""
