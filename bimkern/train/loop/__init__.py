"""Parts of the loop: a session of it, and what ranks that write nothing have in place of files."""
