"""The methods; a file here is a method, and no other edit is needed to add one."""
