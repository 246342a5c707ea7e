"""The page that a run leaves behind: `fourd_core.report.page.write_report`."""
