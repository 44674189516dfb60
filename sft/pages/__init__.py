"""What every HTML page is made of, whatever it shows: one file that opens from disk without network."""
