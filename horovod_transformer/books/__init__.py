"""What a book is, and how books are read from files, folders, tables and the hub."""
