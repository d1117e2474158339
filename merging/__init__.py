"""What pools become. Sees pools and files, never the database."""
