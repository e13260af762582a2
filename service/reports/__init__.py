"""What a terminal, a web page and a spreadsheet show of a run."""
