"""What people see of a run: tables, report.html, pictures, comparisons, TensorBoard."""
