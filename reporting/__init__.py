"""What people see of a run: tables, the page, pictures, TensorBoard."""
